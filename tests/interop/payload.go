package main

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"io"
)

const (
	overhead     = 32
	rotationMask = 20
	maxSegments  = 1 << 40
)

// payload is the plaintext of an artifact: FLOE over the stored file, an io.ReaderAt.
type payload struct {
	file          io.ReaderAt
	offset        uint64 // of the first segment
	segmentLength uint64
	bodyBytes     uint64
	segments      uint64

	iv, aad, parameters []byte
	messageKey          []byte
	keys                map[uint64]cipher.AEAD
	decrypted           int // segments so far
}

// newPayload authenticates the FLOE header and the last segment (artifact-v1 §7, steps 4 and 5).
func newPayload(file io.ReaderAt, fileBytes uint64, h *header, floe, key []byte) (*payload, error) {
	if len(key) != 32 {
		return nil, corrupt("a key has 32 bytes")
	}
	p := &payload{
		file:          file,
		offset:        h.payloadOffset + floeHeaderBytes,
		segmentLength: h.segmentLength,
		parameters:    floe[:10],
		iv:            floe[10:42],
		aad:           h.encoded, // AF-10
		keys:          map[uint64]cipher.AEAD{},
	}
	tag, err := p.derive(key, "HEADER_TAG:", 32)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(tag, floe[42:]) != 1 {
		return nil, corrupt("header tag does not verify")
	}
	if p.messageKey, err = p.derive(key, "MESSAGE_KEY:", 48); err != nil {
		return nil, err
	}
	// AF-12.
	p.bodyBytes = fileBytes - p.offset
	p.segments = (p.bodyBytes + p.segmentLength - 1) / p.segmentLength
	if p.segments < 1 || p.segments > maxSegments ||
		p.bodyBytes-(p.segments-1)*p.segmentLength < overhead {
		return nil, corrupt("no last segment")
	}
	// AF-13.
	_, err = p.segment(p.segments - 1)
	return p, err
}

func (p *payload) size() uint64 { return p.bodyBytes - p.segments*overhead }

// ReadAt gives verified plaintext.
func (p *payload) ReadAt(out []byte, offset int64) (int, error) {
	done := 0
	for done < len(out) {
		at := uint64(offset) + uint64(done)
		if at >= p.size() {
			return done, io.EOF
		}
		capacity := p.segmentLength - overhead
		plain, err := p.segment(at / capacity)
		if err != nil {
			return done, err
		}
		done += copy(out[done:], plain[at%capacity:])
	}
	return done, nil
}

// segment reads, checks and decrypts one (artifact-v1 §4.3).
func (p *payload) segment(position uint64) ([]byte, error) {
	start, last := position*p.segmentLength, position == p.segments-1
	data := make([]byte, min(p.segmentLength, p.bodyBytes-start))
	if n, err := p.file.ReadAt(data, int64(p.offset+start)); n != len(data) {
		return nil, corrupt("cut while it was read: %v", err)
	}
	length, tail := uint32(0xFFFFFFFF), byte(0)
	if last {
		length, tail = uint32(len(data)), 1
	}
	if binary.BigEndian.Uint32(data) != length {
		return nil, corrupt("length field of segment %d", position)
	}
	aead, err := p.aead(position)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, data[4:16], data[16:], append(u64(position), tail))
	if err != nil {
		return nil, corrupt("segment %d does not verify", position)
	}
	p.decrypted++
	return plain, nil
}

// aead is FLOE's DERIVE_KEY.
func (p *payload) aead(position uint64) (cipher.AEAD, error) {
	masked := position >> rotationMask << rotationMask
	if known := p.keys[masked]; known != nil {
		return known, nil
	}
	key, err := p.derive(p.messageKey, "DEK:"+string(u64(masked)), 32)
	if err != nil {
		return nil, err
	}
	aead, err := gcm(key)
	p.keys[masked] = aead
	return aead, err
}

// derive is FLOE_KDF.
func (p *payload) derive(key []byte, purpose string, length int) ([]byte, error) {
	info := string(p.parameters) + string(p.iv) + purpose + string(p.aad)
	return hkdf.Expand(sha512.New384, key, info, length)
}
