package dist

import (
	"errors"
	"fmt"

	"github.com/gomamba/mamba/cuda"
)

var ( // variables for tests
	leastLarge  = 64 << 10 // bytes of a message that goes through NCCL
	bufferBytes = 64 << 20 // of the GPU's memory, for all messages of a call
)

// openGPU connects the GPUs of all ranks, for large messages. It is a collective call.
func (m *mesh) openGPU(g *Group) (err error) {
	if m.gpu, err = cuda.Open(g.GPU()); err == nil {
		m.stream, err = m.gpu.NewStream()
	}
	const needs = "dist: join: without MPI each rank needs a GPU and NCCL: %w"
	if err != nil {
		return g.Fail(fmt.Errorf(needs, err))
	}
	if m.devices, err = g.Devices(m.gpu); err != nil {
		return fmt.Errorf(needs, err)
	}
	return nil
}

func (m *mesh) closeGPU(err error) error {
	if m.gpu == nil {
		return err
	}
	return errors.Join(err, m.gpu.Close())
}

// moveLarge moves messages through memory of the GPUs and NCCL, in pieces that fit into the buffer. The ranks take the same pieces of a message at the same time.
func (m *mesh) moveLarge(messages []Message) (err error) {
	if len(messages) == 0 {
		return nil
	}
	if m.buffer.Absent() {
		if m.buffer, err = cuda.NewArray[byte](m.stream, bufferBytes); err != nil {
			return err
		}
	}
	most := bufferBytes / (2 * (m.size - 1)) / 512 * 512
	for from := 0; ; from += most {
		var queued []cuda.Message
		var arrays []cuda.Array[byte]
		var hosts [][]byte
		for i, message := range messages {
			if from >= len(message.Bytes) {
				continue
			}
			host := message.Bytes[from:min(from+most, len(message.Bytes))]
			a := m.buffer.Slice(i*most, len(host))
			queued = append(queued, cuda.Message{Peer: message.Peer, Receive: message.Receive, Bytes: a})
			if message.Receive {
				arrays, hosts = append(arrays, a), append(hosts, host)
			} else if err := a.CopyFrom(m.stream, host); err != nil {
				return err
			}
		}
		if len(queued) == 0 {
			return nil
		}
		if err := m.devices.queue(m.stream, "a message", func() error { return m.devices.stream.Exchange(queued...) }); err != nil {
			return err
		}
		if err := m.devices.Wait(); err != nil {
			return err
		}
		if err := cuda.CopyAllTo(m.stream, arrays, hosts); err != nil {
			return err
		}
	}
}
