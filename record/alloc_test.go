//go:build !race

package record

import (
	"bufio"
	"io"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestALogLineAllocatesNothing(t *testing.T) {
	log := logger(zapcore.AddSync(bufio.NewWriter(io.Discard)))
	r := sample()
	if n := testing.AllocsPerRun(1000, func() {
		if e := log.Check(zap.InfoLevel, "request"); e != nil {
			e.Write(r.Fields()...)
		}
	}); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
}

func TestARecordInTheBufferAllocatesNothing(t *testing.T) {
	f := &File{mode: BestEffort, buffer: make([]byte, 0, maxBuffer)}
	r := sample()
	if n := testing.AllocsPerRun(1000, func() { _ = f.Write(r) }); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

func TestARequiredRecordAllocatesNothing(t *testing.T) {
	f := newFile(io.Discard, func() error { return nil }, Required)
	r := sample()
	if n := testing.AllocsPerRun(1000, func() { _ = f.Write(r) }); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

func BenchmarkLogLine(b *testing.B) {
	log := logger(zapcore.AddSync(io.Discard))
	r := sample()
	b.ReportAllocs()
	for b.Loop() {
		if e := log.Check(zap.InfoLevel, "request"); e != nil {
			e.Write(r.Fields()...)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	r := sample()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendJSON(buf[:0])
	}
}
