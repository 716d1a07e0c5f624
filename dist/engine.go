package dist

import "time"

// Engine moves bytes between the processes of a group. Implementations may be used by several goroutines.
type Engine interface {
	Rank() int // of this process, 0 to Size-1
	Size() int // number of processes

	// Move starts all messages at once and returns when all are done. Messages between the same two ranks in the same direction with the same tag
	// arrive in the order in which they were started. A received message has exactly the length of its buffer.
	Move(tag Tag, messages []Message) error

	// Watch makes the engine end the processes of all ranks if no answer comes from a rank for the limit, or if progress reports the same count for the limit. A nil
	// progress reports nothing. A limit of 0 switches both off.
	Watch(limit time.Duration, progress func() (count uint64, doing string))

	// Close ends the connection to the other ranks. All of them call it. No Move may be running.
	Close() error
}

// Message is a number of bytes on their way to or from another rank.
type Message struct {
	Peer    int // the other rank
	Receive bool
	Bytes   []byte
}

// Tag distinguishes messages that must not be taken for each other.
type Tag int

const (
	tagGroup Tag = 1 + iota // collective calls
	tagPair                 // Send and Receive
	tagLife                 // signs of life
	tagNews                 // failures, which all ranks wait for all the time
)
