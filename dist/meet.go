package dist

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Without MPI the processes find each other over TCP. Rank 0 listens at an address that all know. The others tell it where they listen, and get a table of all.
// Then each connects to all lower ranks.

// greeting is what a process says when it connects to another one.
type greeting struct {
	Run        string // what the processes of a run have in common
	Size, Rank int
	Port       int // where it listens
}

// answer is what it gets.
type answer struct {
	Error     string
	Run       string   // for the connections between other ranks; nobody else knows it
	Addresses []string // of the ranks, without a host for those on the machine of rank 0
}

const magic = "mamba-2\n" // so that a stranger at either end is noticed

// tell sends a greeting or an answer.
func tell(c net.Conn, what any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(text))), text...))
	return err
}

// hear receives what tell sends, until a time.
func hear(c net.Conn, what any, until time.Time) error {
	if err := c.SetReadDeadline(until); err != nil {
		return err
	}
	var head [len(magic) + 4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[len(magic):])
	if string(head[:len(magic)]) != magic || n > 1<<26 {
		return errors.New("another program answers")
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(c, text); err != nil {
		return err
	}
	return errors.Join(json.Unmarshal(text, what), c.SetReadDeadline(time.Time{}))
}

const (
	patience = 5 * time.Second // with one connection
	again    = 100 * time.Millisecond
)

// addresses returns where rank 0 may listen. torchrun often listens at the port itself, and says so; then it is one of the next ports.
func (l launch) addresses() (all []string) {
	port, _ := strconv.Atoi(l.port)
	from, to := port, port
	if strings.EqualFold(os.Getenv("TORCHELASTIC_USE_AGENT_STORE"), "true") {
		from, to = port+1, port+8
	}
	for ; from <= to; from++ {
		all = append(all, net.JoinHostPort(l.host, strconv.Itoa(from)))
	}
	return all
}

// run returns what distinguishes this run from others.
func (l launch) run() string {
	sum := sha256.Sum256([]byte(l.port + " " + os.Getenv("TORCHELASTIC_RUN_ID")))
	return hex.EncodeToString(sum[:8])
}

// meet connects all ranks.
func meet(ctx context.Context, l launch) (*mesh, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newMesh(l.rank, l.size)
	find := m.call
	if l.rank == 0 {
		find = m.host
	}
	if err := find(ctx, l); err != nil {
		m.hangUp()
		return nil, fmt.Errorf("dist: join: rank %d of %d, started by %s: %w", l.rank, l.size, l.by, err)
	}
	m.start()
	return m, nil
}

// accept sends what connects to a listener, with its greeting, until the context ends.
func accept(ctx context.Context, listener net.Listener) <-chan arrival {
	arrivals := make(chan arrival)
	context.AfterFunc(ctx, func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				a := arrival{conn: c}
				if hear(c, &a.greeting, time.Now().Add(patience)) == nil {
					select {
					case arrivals <- a:
						return
					case <-ctx.Done():
					}
				}
				c.Close() // a stranger, or too late
			}()
		}
	}()
	return arrivals
}

type arrival struct {
	conn net.Conn
	greeting
}

// host waits for all other ranks, as rank 0.
func (m *mesh) host(ctx context.Context, l launch) (err error) {
	var listener net.Listener
	for _, address := range l.addresses() {
		_, port, _ := net.SplitHostPort(address)
		if listener, err = net.Listen("tcp", ":"+port); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("it cannot listen at the port that the others expect: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // closes the listener
	table := answer{Run: rand.Text(), Addresses: make([]string, m.size)}
	defer func() {
		if err != nil {
			table = answer{Error: err.Error()}
		}
		for _, p := range m.others() {
			err = errors.Join(err, tell(p.conn, table))
		}
	}()
	arrivals := accept(ctx, listener)
	slow := time.After(patience)
	for left := m.size - 1; left > 0; {
		select {
		case <-slow:
			fmt.Fprintf(os.Stderr, "dist: rank 0 of %d, started by %s, waits for %d more to come to %v\n", m.size, l.by, left, listener.Addr())
		case <-ctx.Done():
			return fmt.Errorf("%s not come to %v: %w", m.missing(), listener.Addr(), context.Cause(ctx))
		case a := <-arrivals:
			host, _, _ := net.SplitHostPort(a.conn.RemoteAddr().String())
			switch {
			case a.Run != l.run():
				_ = tell(a.conn, answer{Error: otherRun})
				a.conn.Close()
				continue
			case a.Size != m.size:
				err = fmt.Errorf("a process at %s is one of %d, and rank 0 is one of %d, want the same size in all processes", host, a.Size, m.size)
			case a.Rank < 1 || a.Rank >= m.size || m.peers[a.Rank] != nil:
				err = fmt.Errorf("a process at %s is rank %d of %d, and another process is that rank already, want each rank once", host, a.Rank, a.Size)
			default:
				_ = tell(a.conn, answer{}) // that it is known; if it is lost, its connection says so later
				m.peers[a.Rank] = newPeer(a.conn)
				if net.ParseIP(host).IsLoopback() {
					host = ""
				}
				table.Addresses[a.Rank] = net.JoinHostPort(host, strconv.Itoa(a.Port))
				left--
				continue
			}
			_ = tell(a.conn, answer{Error: err.Error()})
			a.conn.Close()
			return err
		}
	}
	return nil
}

const otherRun = "the address belongs to another run"

// missing says which ranks are not there.
func (m *mesh) missing() string {
	var ranks []string
	for r, p := range m.peers {
		if p == nil && r != m.rank {
			ranks = append(ranks, strconv.Itoa(r))
		}
	}
	if len(ranks) == 1 {
		return "rank " + ranks[0] + " has"
	}
	return "ranks " + strings.Join(ranks, ", ") + " have"
}

// call connects to all other ranks, as one that is not rank 0.
func (m *mesh) call(ctx context.Context, l launch) error {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrivals := accept(ctx, listener)
	own := greeting{Run: l.run(), Size: m.size, Rank: m.rank, Port: listener.Addr().(*net.TCPAddr).Port}
	c, err := m.find(ctx, l, own)
	if err != nil {
		return err
	}
	m.peers[0] = newPeer(c)
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	var table answer
	if err := hear(c, &table, time.Time{}); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("other ranks have not come to rank 0: %w", cause)
		}
		return fmt.Errorf("rank 0 has left before all have come: %w", err)
	}
	stop()
	if table.Error != "" {
		return errors.New(table.Error)
	}
	if len(table.Addresses) != m.size {
		return fmt.Errorf("rank 0 knows %d ranks", len(table.Addresses))
	}
	own.Run = table.Run
	for r := 1; r < m.rank; r++ {
		host, port, err := net.SplitHostPort(table.Addresses[r])
		if err != nil {
			return err
		}
		if host == "" {
			host, _, _ = net.SplitHostPort(m.peers[0].conn.RemoteAddr().String())
		}
		c, err := dial(ctx, net.JoinHostPort(host, port))
		if err == nil {
			m.peers[r] = newPeer(c)
			err = tell(c, own)
		}
		if err != nil {
			return fmt.Errorf("rank %d cannot be reached: %w", r, err)
		}
	}
	for left := m.size - 1 - m.rank; left > 0; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s not come: %w", m.missing(), context.Cause(ctx))
		case a := <-arrivals:
			if a.Run != table.Run || a.Rank <= m.rank || a.Rank >= m.size || m.peers[a.Rank] != nil {
				a.conn.Close() // a stranger
				continue
			}
			m.peers[a.Rank] = newPeer(a.conn)
			left--
		}
	}
	return nil
}

// find connects to rank 0.
func (m *mesh) find(ctx context.Context, l launch, own greeting) (net.Conn, error) {
	var wrong error
	for {
		for _, address := range l.addresses() {
			c, err := dial(ctx, address)
			if err == nil {
				var welcome answer
				if err = tell(c, own); err == nil {
					err = hear(c, &welcome, time.Now().Add(patience))
				}
				if err == nil && welcome.Error == "" {
					return c, nil
				}
				c.Close()
				if err == nil && welcome.Error != otherRun {
					return nil, errors.New(welcome.Error)
				}
				if err == nil {
					err = errors.New(otherRun)
				}
			}
			if slow := net.Error(nil); wrong == nil || !errors.As(err, &slow) || !slow.Timeout() { // the end of the context says less than what came before
				wrong = err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("rank 0 is not at %s: %w: %w", strings.Join(l.addresses(), ", "), context.Cause(ctx), wrong)
		case <-time.After(again):
		}
	}
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", address)
}
