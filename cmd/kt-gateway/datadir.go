package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/keeptrusts/gateway/token"
)

const (
	adminTokenFile = "admin-token"
	lockFile       = "kt-gateway.lock"
	folderFile     = "folder-id"
	leasesFolder   = "leases"
	adminTokenMin  = 24 // characters
)

// dataDir is the folder that one gateway keeps its state in, locked while it runs.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the folder if it is not there and locks it.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find the data folder: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	name := filepath.Join(path, lockFile)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write to the data folder %s as user %d: %w", path, os.Getuid(), err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		holder, _ := os.ReadFile(name)
		return nil, fmt.Errorf("the data folder %s is in use by another kt-gateway (process %s): stop that one, or give this one a folder of its own with --data",
			path, strings.TrimSpace(string(holder)))
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &dataDir{path: path, lock: f}, nil
}

// file gives the path of a file in the folder.
func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// id names the folder to the control plane, which forgets whoever ran from it
// before; made once.
func (d *dataDir) id() (string, error) {
	name := d.file(folderFile)
	b, err := os.ReadFile(name)
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == len("dir_")+32 {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the folder's id: %w", err)
	}
	var random [16]byte
	_, _ = rand.Read(random[:])
	id := "dir_" + hex.EncodeToString(random[:])
	return id, writeWhole(name, []byte(id+"\n"))
}

// close gives the lock back. The file stays: removing it would let two processes
// lock two files of the same name.
func (d *dataDir) close() { _ = d.lock.Close() }

// adminToken is the environment's, else the folder's, which is made if absent;
// made says where it is kept then.
func (d *dataDir) adminToken(env func(string) (string, bool)) (admin token.Secret, kept string, err error) {
	admin, err = adminTokenFromEnv(env)
	if err != nil || !admin.Empty() {
		return admin, "", err
	}
	name := d.file(adminTokenFile)
	admin, err = readAdminToken(name)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return admin, name, err
	}
	admin = token.Mint()
	// The form of a client's token would be taken for one: an administrator's is told apart at sight.
	admin = token.NewSecret("kt_admin_" + strings.TrimPrefix(admin.Reveal(), token.Prefix))
	return admin, name, writeSecret(name, admin)
}

// adminTokenFromEnv reads KEEPTRUSTS_ADMIN_TOKEN or the file that
// KEEPTRUSTS_ADMIN_TOKEN_FILE names; empty when neither is set.
func adminTokenFromEnv(env func(string) (string, bool)) (token.Secret, error) {
	if s, _ := env("KEEPTRUSTS_ADMIN_TOKEN"); s != "" {
		return checkAdminToken(s, "KEEPTRUSTS_ADMIN_TOKEN")
	}
	if name, _ := env("KEEPTRUSTS_ADMIN_TOKEN_FILE"); name != "" {
		admin, err := readAdminToken(name)
		if err != nil {
			return admin, fmt.Errorf("KEEPTRUSTS_ADMIN_TOKEN_FILE: %w", err)
		}
		return admin, nil
	}
	return token.Secret{}, nil
}

func readAdminToken(name string) (token.Secret, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return token.Secret{}, fmt.Errorf("read the admin token: %w", err)
	}
	return checkAdminToken(strings.TrimRight(string(b), "\r\n"), name)
}

func checkAdminToken(s, from string) (token.Secret, error) {
	if len(s) < adminTokenMin {
		return token.Secret{}, fmt.Errorf("the admin token in %s has %d characters; at least %d are needed", from, len(s), adminTokenMin)
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return token.Secret{}, fmt.Errorf("the admin token in %s holds a space or a character that a header can't carry", from)
		}
	}
	return token.NewSecret(s), nil
}

// writeSecret keeps a secret in a file that only its owner can read. It appears
// under its name whole or not at all.
func writeSecret(name string, s token.Secret) error {
	return writeWhole(name, []byte(s.Reveal()+"\n"))
}

func writeWhole(name string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
