package proxy

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWhoFillsALimitAloneLeavesAnEighthForOthers(t *testing.T) {
	for _, limit := range []int64{1, 4, 8, 16, 100, 20_000} {
		var s shares
		take := func(slot uint32) (n int64) {
			for s.take(slot, 1, limit) {
				n++
			}
			return n
		}
		if n := take(0); n != limit {
			t.Errorf("limit %d: alone one gets %d", limit, n)
		}
		more := int64(0)
		for other := uint32(1); more < beyond(limit) && other < slots; other++ {
			n := take(other)
			if other == 1 && n < 1 {
				t.Errorf("limit %d: the first beside the one who filled it gets nothing", limit)
			}
			if left := beyond(limit) - more; n > left*3/4+1 || other == 1 && n < left*3/4 {
				t.Errorf("limit %d: one takes %d of the %d that are left", limit, n, left)
			}
			more += n
		}
		if more != beyond(limit) || s.Load() != limit+more {
			t.Errorf("limit %d: others get %d, want %d", limit, more, beyond(limit))
		}
		if limit < 8 {
			continue // one place is hardly a share
		}
		// What the one gives back goes to those who hold little, until it is theirs.
		for range more {
			s.give(0, 1)
			if s.take(0, 1, limit) {
				t.Errorf("limit %d: who holds most got what was free", limit)
				break
			}
		}
	}
}

func TestSharesStayWithinTheLimitAndAnEighth(t *testing.T) {
	const limit, holders = 1000, 12
	var s shares
	var held [holders]int64
	for range 200_000 {
		h := uint32(rand.Uint64N(uint64(rand.Uint64N(holders) + 1)))
		n := int64(rand.Uint64N(40))
		if rand.Uint64N(5) < 2 {
			n = min(n, held[h])
			s.give(h, n)
			held[h] -= n
			continue
		}
		before := s.Load()
		ok := s.take(h, n, limit)
		if want := before+n <= limit || before+n <= limit+beyond(limit) && held[h]+n <= min(limit, 3*(limit+beyond(limit)-before)); ok != want {
			t.Fatalf("%d of %d for one who holds %d: %v", n, before, held[h], ok)
		}
		if ok {
			held[h] += n
		}
		sum := int64(0)
		for _, v := range held {
			sum += v
		}
		if s.Load() != sum || sum > limit+beyond(limit) {
			t.Fatalf("held %d, counted %d", sum, s.Load())
		}
	}
	var wait sync.WaitGroup
	for h := range uint32(8) {
		wait.Go(func() {
			for range 20_000 {
				if s.take(h, 1, 10) {
					s.give(h, 1)
				}
			}
		})
	}
	before := s.Load()
	wait.Wait()
	if s.Load() != before {
		t.Errorf("%d are held after all was given back, %d before", s.Load(), before)
	}
}

func TestThoseWhoAreRefusedDoNotCount(t *testing.T) {
	const limit = 100
	var s shares
	for s.take(0, 1, limit) {
	}
	end := make(chan struct{})
	var wait sync.WaitGroup
	for range 64 {
		wait.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					if s.take(0, 1, limit) {
						t.Error("the one who filled it got more")
						return
					}
				}
			}
		})
	}
	for i := range 200_000 {
		if !s.take(1, 1, limit) {
			t.Errorf("refused after %d", i)
			break
		}
		s.give(1, 1)
	}
	close(end)
	wait.Wait()
}

func TestAnAddressIsWhatACustomerIsGiven(t *testing.T) {
	same := [][2]string{{"192.0.2.1", "::ffff:192.0.2.1"}, {"2001:db8::1", "2001:db8::ffff:1"}}
	other := [][2]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8:0:1::1"}}
	for _, p := range same {
		if addressSlot(net.ParseIP(p[0])) != addressSlot(net.ParseIP(p[1])) {
			t.Errorf("%s and %s are two", p[0], p[1])
		}
	}
	for _, p := range other { // one of 8,192 is taken for another: not of both
		if addressSlot(net.ParseIP(p[0])) == addressSlot(net.ParseIP(p[1])) && addressSlot(net.ParseIP(other[0][0])) == addressSlot(net.ParseIP(other[0][1])) {
			t.Errorf("%s and %s are one", p[0], p[1])
		}
	}
}

// from is dial from another address of the loopback.
func (g *gateway) from(address string) *wire {
	g.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, err := d.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	g.t.Cleanup(func() { _ = c.Close() })
	return &wire{t: g.t, TCPConn: c.(*net.TCPConn), r: bufio.NewReader(c)}
}

// apart finds addresses of the loopback that are counted in slots of their own.
func apart(n int) []string {
	used := make(map[uint32]bool)
	var all []string
	for i := 1; len(all) < n; i++ {
		a := fmt.Sprintf("127.0.7.%d", i)
		if slot := addressSlot(net.ParseIP(a)); !used[slot] {
			used[slot] = true
			all = append(all, a)
		}
	}
	return all
}

func TestAFloodFromOneAddressLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, limited(u.url, "connections: 80, header_read: 60s, lame_duck: 0s"))
	addresses := apart(6)
	flood, others := addresses[0], addresses[1:]
	var held []*wire
	for i := range 80 {
		w := g.from(flood)
		if i%2 == 0 {
			w.send("POST /v1/chat/comp") // and no more
		}
		held = append(held, w)
	}
	eventually(t, "the flood is in", func() bool { return g.s.conns.Load() == 80 })
	for range 40 {
		w := g.from(flood)
		w.send(call(g.key, plainBody))
		overloaded(t, "one connection too many of the flood's", w.must())
		_ = w.Close()
	}
	for _, a := range others {
		w := g.from(a)
		w.send(call(g.key, plainBody))
		if r := w.must(); r.status != 200 {
			t.Errorf("%s beside the flood: %d %q", a, r.status, r.body)
		}
		if !w.alive() {
			t.Errorf("%s: its connection is not kept", a)
		}
	}
	// A place that the flood gives back is not the flood's.
	_ = held[0].Close()
	eventually(t, "a place is free", func() bool { return g.s.conns.Load() == 84 })
	w := g.from(flood)
	w.send(call(g.key, plainBody))
	overloaded(t, "the flood, with others there", w.must())
}

func TestAFloodOnOneTokenLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			if claimOf(raw) == "held" {
				c.send(sseHead + chunk(event(1)))
				<-release
				c.send(chunk(doneEvent) + lastChunk)
				continue
			}
			c.send(whole(200, completion))
		}
	})
	large := `{"model":"chat","messages":[{"role":"user","content":"` + strings.Repeat("x", 140<<10) + `"}]}`
	g := start(t, limited(u.url, "streams: 16, request_body: 150KiB, bodies: 1200KiB, body_read: 60s, lame_duck: 0s"))
	others := make([]string, 4)
	for i := range others {
		others[i] = g.mint(nil)
	}
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			if r := g.do(call(g.key, streamBody, claimed("held"))); r.err != nil {
				t.Errorf("a stream within the limit: %v %q", r.err, r.body)
			}
		})
	}
	eventually(t, "the flood is in", func() bool { return g.s.streams.Load() == 16 })
	for range 40 {
		overloaded(t, "the flood's next call", g.do(call(g.key, plainBody)))
	}
	for i, key := range others {
		if r := g.do(call(key, plainBody)); r.status != 200 {
			t.Errorf("token %d beside the flood: %d %q", i, r.status, r.body)
		}
	}
	close(release)
	wait.Wait()

	raw := call(g.key, large)
	for range 8 { // bodies that never end
		w := g.dial()
		w.send(raw[:len(raw)-10])
	}
	eventually(t, "the bodies are held", func() bool { return g.s.bodies.Load() > 8*140<<10 })
	overloaded(t, "the flood's next body", g.do(raw))
	if r := g.do(call(others[0], large)); r.status != 200 {
		t.Errorf("another token's body: %d %q", r.status, r.body)
	}
}
