package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/spf13/cobra"
)

const (
	// floorPiece is what one read and one write of a range move, as messages of a gateway do.
	floorPiece = mib
	// floorFile is the size at which the floor goes on in a fresh file, as a gateway does.
	floorFile = 8 * mib
	// floorKept is how many bytes of files are kept.
	floorKept = 4 * gib
)

// floorServer does the least that a server of a log must do: take bodies, check the batch in each,
// write it to a file; and send ranges of a file.
type floorServer struct {
	dir    string
	bodies sync.Pool // *[]byte
	pieces sync.Pool // *[]byte

	mu     sync.Mutex
	files  []*writtenFile // the last one is written to
	number int            // of files made so far
	at     int64
}

// writtenFile is a file of the floor.
type writtenFile struct {
	*os.File
	writes int  // on their way
	full   bool // no more will come
}

// newFloorServerCommand is hidden: `varve bench floor` runs it as a process of its own. It prints its
// address and ends with its standard input.
func newFloorServerCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "floor-server", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serveFloor(dir, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder for files")
	return cmd
}

func serveFloor(dir string, stdin io.Reader, stdout io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &floorServer{dir: dir}
	s.bodies.New = func() any { return new([]byte) }
	s.pieces.New = func() any { b := make([]byte, floorPiece); return &b }
	mux := http.NewServeMux()
	handle := func(path string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	handle("POST /produce", s.produce)
	handle("POST /reset", s.reset)
	handle("POST /fill", s.fill)
	handle("GET /pread", s.pread)
	handle("GET /sendfile", s.sendfile)
	handle("GET /usage", func(w http.ResponseWriter, _ *http.Request) error {
		return json.NewEncoder(w).Encode(floorUsage{processCPU().Seconds()})
	})
	server := &http.Server{Handler: mux}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	if _, err := fmt.Fprintf(stdout, "http://%s\n", listener.Addr()); err != nil {
		return err
	}
	// The bench holds the other end until it is done, or gone.
	_, err = io.Copy(io.Discard, stdin)
	server.Close()
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// floorUsage is what a floor server used since its start.
type floorUsage struct {
	CPUSeconds float64 `json:"cpu_seconds"`
}

// produce reads a body into one buffer, checks the CRC of the batch in it and writes the batch. With ?fsync, whoever is the last to write
// to a file that is full syncs it.
func (s *floorServer) produce(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength <= 0 {
		return errors.New("a body of a known length is needed")
	}
	buffer := s.bodies.Get().(*[]byte)
	defer s.bodies.Put(buffer)
	if int64(cap(*buffer)) < r.ContentLength {
		*buffer = make([]byte, r.ContentLength)
	}
	body := (*buffer)[:r.ContentLength]
	if _, err := io.ReadFull(r.Body, body); err != nil {
		return err
	}
	data, err := batchIn(body)
	if err != nil {
		return err
	}
	if crc32.Checksum(data[crcFrom:], castagnoli) != binary.BigEndian.Uint32(data[crcAt:]) {
		return errors.New("the batch does not have its CRC")
	}
	return s.write(data, r.URL.Query().Has("fsync"))
}

// write appends to the open file, and goes on in another when it is full.
func (s *floorServer) write(data []byte, sync bool) error {
	s.mu.Lock()
	if len(s.files) == 0 || s.files[len(s.files)-1].full {
		if err := s.rotate(); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	file, at := s.files[len(s.files)-1], s.at
	s.at += int64(len(data))
	file.writes++
	file.full = s.at+int64(len(data)) > floorFile // for another one like it
	s.mu.Unlock()
	_, err := file.WriteAt(data, at)
	s.mu.Lock()
	file.writes--
	last := file.full && file.writes == 0
	s.mu.Unlock()
	if err == nil && sync && last {
		return file.Sync()
	}
	return err
}

// rotate opens the next file. Earlier ones stay open, for writes that are on their way.
func (s *floorServer) rotate() error {
	file, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("%06d.floor", s.number)))
	if err != nil {
		return err
	}
	s.files = append(s.files, &writtenFile{File: file})
	s.number++
	s.at = 0
	if len(s.files) > floorKept/floorFile {
		return s.removeOldest()
	}
	return nil
}

// removeOldest gives its memory in the system's cache back too: a file that is open keeps it.
func (s *floorServer) removeOldest() error {
	file := s.files[0]
	s.files = s.files[1:]
	return errors.Join(file.Close(), os.Remove(file.Name()))
}

// reset removes what was written. Nothing is being written meanwhile.
func (s *floorServer) reset(http.ResponseWriter, *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.files) > 0 {
		if err := s.removeOldest(); err != nil {
			return err
		}
	}
	return nil
}

func (s *floorServer) rangePath() string { return filepath.Join(s.dir, "range.floor") }

// fill makes the file that ranges are read from.
func (s *floorServer) fill(_ http.ResponseWriter, r *http.Request) error {
	file, err := os.Create(s.rangePath())
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r.Body)
	return errors.Join(err, file.Close())
}

// ranged opens the file of ranges and reads how much of it is wanted.
func (s *floorServer) ranged(w http.ResponseWriter, r *http.Request) (*os.File, int64, error) {
	size, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
	if err != nil {
		return nil, 0, err
	}
	file, err := os.Open(s.rangePath())
	if err != nil {
		return nil, 0, err
	}
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	return file, size, nil
}

// pread sends a range piece by piece, through memory.
func (s *floorServer) pread(w http.ResponseWriter, r *http.Request) error {
	file, size, err := s.ranged(w, r)
	if err != nil {
		return err
	}
	defer file.Close()
	piece := s.pieces.Get().(*[]byte)
	defer s.pieces.Put(piece)
	for at := int64(0); at < size; {
		part := (*piece)[:min(floorPiece, size-at)]
		if _, err := file.ReadAt(part, at); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return nil // the client is gone
		}
		at += int64(len(part))
	}
	return nil
}

// sendfile has the system send a range, where it can.
func (s *floorServer) sendfile(w http.ResponseWriter, r *http.Request) error {
	file, size, err := s.ranged(w, r)
	if err != nil {
		return err
	}
	defer file.Close()
	// A failed write means that the client is gone.
	_, _ = io.CopyN(w, file, size)
	return nil
}
