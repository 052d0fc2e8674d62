package main

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"
)

// pseudoTerminal opens a pseudo-terminal and returns the program's end of it.
func pseudoTerminal(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	var unlock, number int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
			t.Fatal(errno)
		}
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestATerminalShowsNothingOfAToken(t *testing.T) {
	f := pseudoTerminal(t)
	if !terminal(f) {
		t.Error("not taken for a terminal")
	}
	echoes := func() bool {
		var now syscall.Termios
		if !termios(f, syscall.TCGETS, &now) {
			t.Fatal("not a terminal")
		}
		return now.Lflag&syscall.ECHO != 0
	}
	if !echoes() {
		t.Fatal("a new terminal does not echo")
	}
	restore, ok := echoOff(f)
	if !ok || echoes() {
		t.Error("what is typed is shown")
	}
	restore()
	if !echoes() {
		t.Error("the terminal is not as it was")
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := echoOff(f); ok || terminal(f) {
		t.Error("/dev/null is taken for a terminal")
	}
}
