package main

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	kindFile = 1
	kindZip  = 2

	fixedBytes      = 16
	maxHeaderBytes  = 4096
	floeHeaderBytes = 74
)

var (
	magic       = []byte("\x89MKMS\r\n\x1a")
	versionName = regexp.MustCompile(strings.ReplaceAll(
		`\Aprojects/ID/models/ID/versions/[1-9][0-9]{0,8}\z`,
		"ID", `[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?`))
	hex128 = regexp.MustCompile(`\A[0-9a-f]{32}\z`)
)

// header is an ArtifactHeader (artifact-v1 §3).
type header struct {
	version, versionUID, artifactID, fileName string
	kind, segmentLength                       uint64

	encoded       []byte // exactly as in the file
	payloadOffset uint64
}

// parseHeader checks what stands in clear; prefix is the beginning of the file.
func parseHeader(prefix []byte) (*header, error) {
	// AF-1.
	if len(prefix) < fixedBytes || !bytes.Equal(prefix[:8], magic) {
		return nil, corrupt("no artifact")
	}
	if binary.BigEndian.Uint32(prefix[8:]) != 1 {
		return nil, corrupt("another format version")
	}
	length := binary.BigEndian.Uint32(prefix[12:])
	if length < 1 || length > maxHeaderBytes {
		return nil, corrupt("header length out of bounds")
	}
	h := &header{payloadOffset: fixedBytes + uint64(length)}
	// AF-2.
	if uint64(len(prefix)) < h.payloadOffset+floeHeaderBytes {
		return nil, corrupt("ends within its header")
	}
	h.encoded = prefix[fixedBytes:h.payloadOffset]
	if err := h.decode(); err != nil {
		return nil, err
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	// AF-9.
	parameters := binary.BigEndian.AppendUint32([]byte{0, 0}, uint32(h.segmentLength))
	parameters = binary.BigEndian.AppendUint32(parameters, 32)
	if !bytes.Equal(prefix[h.payloadOffset:][:10], parameters) {
		return nil, corrupt("other FLOE parameters than the header's")
	}
	return h, nil
}

// decode reads the canonical encoding and no other (AF-3): fields ascending, none at its default.
func (h *header) decode() error {
	texts := map[uint64]*string{
		1: &h.version, 2: &h.versionUID, 3: &h.artifactID, 6: &h.fileName,
	}
	numbers := map[uint64]*uint64{4: &h.kind, 5: &h.segmentLength}
	last, rest := uint64(0), h.encoded
	for len(rest) > 0 {
		tag, n := shortestVarint(rest)
		if n == 0 {
			return corrupt("malformed header")
		}
		rest = rest[n:]
		field, wire := tag>>3, tag&7
		value, n := shortestVarint(rest)
		if n == 0 || field <= last || value == 0 {
			return corrupt("header not in its canonical encoding")
		}
		last, rest = field, rest[n:]
		switch {
		case texts[field] != nil && wire == 2:
			if value > uint64(len(rest)) || !utf8.Valid(rest[:value]) {
				return corrupt("malformed header")
			}
			*texts[field], rest = string(rest[:value]), rest[value:]
		case numbers[field] != nil && wire == 0:
			*numbers[field] = value
		default:
			return corrupt("header with an unknown field")
		}
	}
	return nil
}

func shortestVarint(data []byte) (uint64, int) {
	value, n := binary.Uvarint(data)
	if n <= 0 || !bytes.Equal(binary.AppendUvarint(nil, value), data[:n]) {
		return 0, 0
	}
	return value, n
}

// check is artifact-v1 §3.3.
func (h *header) check() error {
	switch {
	case !versionName.MatchString(h.version): // AF-4
		return corrupt("malformed version name")
	case !hex128.MatchString(h.versionUID) || !hex128.MatchString(h.artifactID): // AF-5
		return corrupt("malformed id")
	case h.segmentLength < 4096 || h.segmentLength > 16<<20: // AF-6
		return corrupt("segment length out of bounds")
	case h.kind == kindFile: // AF-7
		if !goodName(h.fileName) {
			return corrupt("bad file name")
		}
	case h.kind == kindZip:
		if h.fileName != "" {
			return corrupt("a folder with a file name")
		}
	default:
		return corrupt("unknown payload kind")
	}
	return nil
}

// goodName is AF-8, for one part of a path.
func goodName(name string) bool {
	if len(name) < 1 || len(name) > 255 || name == "." || name == ".." || !utf8.ValidString(name) {
		return false
	}
	if len(name) > 1 && name[1] == ':' && (name[0]|0x20) >= 'a' && (name[0]|0x20) <= 'z' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r < 0x20 || r == 0x7f || r == '/' || r == '\\'
	})
}
