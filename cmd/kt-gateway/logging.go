package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/keeptrusts/gateway/record"
)

const (
	logFlushEvery = 100 * time.Millisecond
	logBuffer     = 32 << 10 // bytes that are written at once. A larger one costs more: it leaves the processor's cache
)

// logs is the process's log: JSON lines on stderr, buffered, never sampled.
type logs struct {
	*zap.Logger
	level zap.AtomicLevel
	sink  *logWriter
}

// openLogs starts a log at a level of the config's. Close it to see its last lines.
func openLogs(stderr io.Writer, level string) (*logs, error) {
	l := &logs{level: zap.NewAtomicLevel()}
	if err := l.setLevel(level); err != nil {
		return nil, err
	}
	l.sink = newLogWriter(stderr)
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", MessageKey: "msg", NameKey: "logger", StacktraceKey: "stack",
		EncodeTime:     zapcore.RFC3339NanoTimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	})
	l.Logger = zap.New(lineCore{zapcore.NewCore(enc, l.sink, l.level), l.sink})
	return l, nil
}

// lineCore writes a request's line by the record's own hand and everything else by
// zap's encoder. Both write the same form; TestLogLine holds them together.
type lineCore struct {
	zapcore.Core
	sink *logWriter
}

// Dropped counts the lines that are lost; the server finds it, and tells of it in a metric.
func (c lineCore) Dropped() uint64 { return c.sink.Dropped() }

// With keeps the wrapper; fields that were added make every line zap's.
func (c lineCore) With(fields []zapcore.Field) zapcore.Core {
	if len(fields) > 0 {
		return c.Core.With(fields)
	}
	return c
}

// Check adds this core, not the one inside.
func (c lineCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c lineCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if len(fields) != 1 {
		return c.Core.Write(e, fields)
	}
	r, ok := fields[0].Interface.(*record.Record)
	if !ok || fields[0].Type != zapcore.InlineMarshalerType {
		return c.Core.Write(e, fields)
	}
	return c.WriteRecord(e.Level, e.Time, e.Message, r)
}

// WriteRecord is Write of a record alone, without zap's way to it: the server finds
// it and calls it itself.
func (c lineCore) WriteRecord(level zapcore.Level, at time.Time, msg string, r *record.Record) error {
	line, _ := lineBuffers.Get().(*[]byte)
	if line == nil {
		line = new([]byte)
	}
	*line = r.AppendLog((*line)[:0], level.String(), at, msg)
	_, err := c.sink.Write(*line)
	lineBuffers.Put(line)
	return err
}

var lineBuffers sync.Pool // of *[]byte

func (l *logs) setLevel(level string) error {
	if level == "" {
		level = "info"
	}
	v, err := zapcore.ParseLevel(level)
	if err != nil {
		return fmt.Errorf("log.level: %q is not debug, info, warn or error", level)
	}
	l.level.SetLevel(v)
	return nil
}

// close writes what is buffered.
func (l *logs) close() { l.sink.close() }
