package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

const (
	maxMembers    = 100_000
	maxNameBytes  = 1024
	tailBytes     = 98
	entryOverhead = 46 + 28
	localOverhead = 30 + 20 + 6
)

// member is one file of the payload.
type member struct {
	name                       string
	offset, size, headerOffset uint64
}

var le = binary.LittleEndian

// readMembers checks directory and end records against the one form (artifact-v1 §5.4).
func readMembers(p *payload) ([]member, error) {
	size := p.size()
	if size < tailBytes {
		return nil, rejected("archive too short")
	}
	// AF-20.
	end, err := readRange(p, size-tailBytes, tailBytes)
	if err != nil {
		return nil, err
	}
	count, bytesOf, at := le.Uint64(end[32:]), le.Uint64(end[40:]), le.Uint64(end[48:])
	if count < 1 || count > maxMembers || bytesOf > count*(entryOverhead+maxNameBytes) ||
		at > size || at+bytesOf+tailBytes != size || !bytes.Equal(end, tail(count, bytesOf, at)) {
		return nil, rejected("end records of another form")
	}
	directory, err := readRange(p, at, bytesOf)
	if err != nil {
		return nil, err
	}
	// AF-21.
	members, next, seen := make([]member, 0, count), uint64(0), map[string]string{}
	for range count {
		if len(directory) < entryOverhead {
			return nil, rejected("directory cut short")
		}
		nameBytes := int(le.Uint16(directory[28:]))
		if len(directory) < entryOverhead+nameBytes {
			return nil, rejected("directory cut short")
		}
		m := member{
			name:         string(directory[46:][:nameBytes]),
			size:         le.Uint64(directory[46+nameBytes+4:]),
			headerOffset: next,
		}
		if len(members) > 0 && m.name <= members[len(members)-1].name {
			return nil, rejected("members out of order")
		}
		if !goodPath(m.name, seen) {
			return nil, rejected("bad name")
		}
		m.offset = (next + localOverhead + uint64(nameBytes) + 63) / 64 * 64
		if m.size > at || m.offset+m.size+24 > at {
			return nil, rejected("a member outside")
		}
		next = m.offset + m.size + 24
		entry := directoryEntry(m, le.Uint32(directory[16:]))
		if !bytes.HasPrefix(directory, entry) {
			return nil, rejected("an entry of another form")
		}
		directory = directory[len(entry):]
		members = append(members, m)
	}
	if len(directory) > 0 || next != at {
		return nil, rejected("bytes that belong to no member")
	}
	return members, nil
}

// checkLocal is AF-22.
func checkLocal(p *payload, m member) error {
	expected := localHeader(m)
	found, err := readRange(p, m.headerOffset, uint64(len(expected)))
	if err != nil {
		return err
	}
	if !bytes.Equal(found, expected) {
		return rejected("a local header of another form")
	}
	return nil
}

// fold is AF-18.
func fold(part string) string {
	return norm.NFC.String(cases.Fold().String(norm.NFC.String(part)))
}

// goodPath is AF-17 and AF-18; seen has every file and folder by its folded path.
func goodPath(name string, seen map[string]string) bool {
	if len(name) > maxNameBytes || !utf8.ValidString(name) {
		return false
	}
	parts, folded := strings.Split(name, "/"), ""
	for depth, part := range parts {
		if !goodName(part) {
			return false
		}
		spelled := strings.Join(parts[:depth+1], "/")
		folded += "/" + fold(part)
		if depth < len(parts)-1 {
			spelled += "/"
		}
		if other, known := seen[folded]; known && other != spelled {
			return false
		}
		seen[folded] = spelled
	}
	return true
}

func localHeader(m member) []byte {
	padding := int(m.offset-m.headerOffset) - localOverhead - len(m.name)
	out := []byte("PK\x03\x04")
	out = le16(out, 45, 0x0808, 0, 0, 33)
	out = le32(out, 0, 0xFFFFFFFF, 0xFFFFFFFF)
	out = le16(out, uint16(len(m.name)), uint16(26+padding))
	out = append(out, m.name...)
	out = le64(le16(out, 1, 16), 0, 0)
	out = le16(out, 0xD935, uint16(2+padding), 64)
	return append(out, make([]byte, padding)...)
}

func directoryEntry(m member, crc uint32) []byte {
	out := []byte("PK\x01\x02")
	out = le16(out, 813, 45, 0x0808, 0, 0, 33)
	out = le32(out, crc, 0xFFFFFFFF, 0xFFFFFFFF)
	out = le16(out, uint16(len(m.name)), 28, 0, 0, 0)
	out = le32(out, 0x81A40000, 0xFFFFFFFF)
	out = append(out, m.name...)
	return le64(le16(out, 1, 24), m.size, m.size, m.headerOffset)
}

func tail(count, directoryBytes, at uint64) []byte {
	out := le64([]byte("PK\x06\x06"), 44)
	out = le16(out, 813, 45)
	out = le32(out, 0, 0)
	out = le64(out, count, count, directoryBytes, at)
	out = le32(append(out, "PK\x06\x07"...), 0)
	out = le32(le64(out, at+directoryBytes), 1)
	out = le16(append(out, "PK\x05\x06"...), 0, 0, 0xFFFF, 0xFFFF)
	out = le32(out, 0xFFFFFFFF, 0xFFFFFFFF)
	return le16(out, 0)
}

func readRange(from io.ReaderAt, offset, length uint64) ([]byte, error) {
	data := make([]byte, length)
	if n, err := from.ReadAt(data, int64(offset)); uint64(n) != length {
		return nil, err
	}
	return data, nil
}

func le16(out []byte, values ...uint16) []byte {
	for _, value := range values {
		out = le.AppendUint16(out, value)
	}
	return out
}

func le32(out []byte, values ...uint32) []byte {
	for _, value := range values {
		out = le.AppendUint32(out, value)
	}
	return out
}

func le64(out []byte, values ...uint64) []byte {
	for _, value := range values {
		out = le.AppendUint64(out, value)
	}
	return out
}
