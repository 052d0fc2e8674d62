package main

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	logFlushEvery = 100 * time.Millisecond
	logBuffer     = 256 << 10 // bytes; full, it is written at once
)

// logs is the process's log: JSON lines on stderr, buffered, never sampled.
type logs struct {
	*zap.Logger
	level zap.AtomicLevel
	sink  *zapcore.BufferedWriteSyncer
}

// openLogs starts a log at a level of the config's. Close it to see its last lines.
func openLogs(stderr io.Writer, level string) (*logs, error) {
	l := &logs{level: zap.NewAtomicLevel()}
	if err := l.setLevel(level); err != nil {
		return nil, err
	}
	l.sink = &zapcore.BufferedWriteSyncer{WS: zapcore.AddSync(stderr), Size: logBuffer, FlushInterval: logFlushEvery}
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", MessageKey: "msg", NameKey: "logger", StacktraceKey: "stack",
		EncodeTime:     zapcore.RFC3339NanoTimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	})
	l.Logger = zap.New(zapcore.NewCore(enc, l.sink, l.level))
	return l, nil
}

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
func (l *logs) close() { _ = l.sink.Stop() }
