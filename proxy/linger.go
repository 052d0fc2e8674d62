package proxy

import (
	"net"
	"time"
)

const (
	// lingerFor bounds how long a client may go on sending after its answer.
	lingerFor = 5 * time.Second
	// maxTurnedAway is how many connections beyond limits.connections are answered at
	// once; more are closed without a word.
	maxTurnedAway = 256
)

// linger ends a connection on which the client may be sending still: closed over
// unread bytes it would be reset, and the answer lost with it. What comes is dropped
// until the client closes too, and at most for so long.
func linger(c *net.TCPConn, within time.Duration) {
	if c.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(within)) != nil {
		return
	}
	var drop [4 << 10]byte
	for {
		if _, err := c.Read(drop[:]); err != nil {
			return
		}
	}
}
