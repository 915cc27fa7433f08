package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
)

// request says which artifact to read, and what it must be.
type request struct {
	File       string   `json:"file"`
	Key        hexBytes `json:"key"`
	Version    string   `json:"version"`
	VersionUID string   `json:"version_uid"`
	ArtifactID string   `json:"artifact_id"`
	Pin        *pin     `json:"pin"`
	// Ranges of members, read at random, each with a reader of its own: in any order.
	Ranges []rangeRequest `json:"ranges"`
	// RangesOnly leaves out to read the members whole.
	RangesOnly bool `json:"ranges_only"`
}

type rangeRequest struct {
	Member string `json:"member"`
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
}

type contents struct {
	Version string       `json:"version"`
	Kind    uint64       `json:"payload_kind"`
	Files   []fileDigest `json:"files"`
	Ranges  []rangeRead  `json:"ranges"`
}

type rangeRead struct {
	Content hexBytes `json:"content"`
	// Segments that were decrypted for it alone.
	Segments int `json:"segments"`
}

type fileDigest struct {
	Name   string   `json:"name"`
	Size   uint64   `json:"size_bytes"`
	Sha256 hexBytes `json:"sha256"`
}

func readArtifact(input io.Reader) (*contents, error) {
	var r request
	if err := json.NewDecoder(input).Decode(&r); err != nil {
		return nil, err
	}
	return r.read()
}

// read does what artifact-v1 §7 says, in its order.
func (r *request) read() (*contents, error) {
	file, err := os.Open(r.File)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	fileBytes := uint64(info.Size())

	// Step 1.
	prefix := make([]byte, min(fileBytes, fixedBytes+maxHeaderBytes+floeHeaderBytes))
	if _, err := io.ReadFull(file, prefix); err != nil {
		return nil, err
	}
	h, err := parseHeader(prefix)
	if err != nil {
		return nil, err
	}
	floe := prefix[h.payloadOffset:][:floeHeaderBytes]
	// Step 2.
	for _, each := range [][2]string{
		{r.Version, h.version}, {r.VersionUID, h.versionUID}, {r.ArtifactID, h.artifactID},
	} {
		if each[0] != "" && each[0] != each[1] {
			return nil, mismatch("another artifact: %q", each[1])
		}
	}
	// Step 3, and the digest, since the file comes from we do not know where.
	if r.Pin != nil {
		if err := checkPin(file, fileBytes, floe, r.Pin); err != nil {
			return nil, err
		}
	}
	// Steps 4 and 5.
	p, err := newPayload(file, fileBytes, h, floe, r.Key)
	if err != nil {
		return nil, err
	}
	// Step 6.
	members := []member{{h.fileName, 0, p.size(), 0}}
	if h.kind == kindZip {
		if members, err = readMembers(p); err != nil {
			return nil, err
		}
	}
	result := &contents{Version: h.version, Kind: h.kind, Ranges: []rangeRead{}}
	for _, want := range r.Ranges {
		read, err := readMemberRange(p, h.kind, members, want)
		if err != nil {
			return nil, err
		}
		result.Ranges = append(result.Ranges, *read)
	}
	if r.RangesOnly {
		return result, nil
	}
	for _, m := range members {
		// Step 7.
		if h.kind == kindZip {
			if err := checkLocal(p, m); err != nil {
				return nil, err
			}
		}
		// Step 8.
		digest := sha256.New()
		if _, err := io.Copy(digest, io.NewSectionReader(p, int64(m.offset), int64(m.size))); err != nil {
			return nil, err
		}
		result.Files = append(result.Files, fileDigest{m.name, m.size, digest.Sum(nil)})
	}
	if h.kind == kindZip {
		return result, checkWithStandardLibrary(p, result.Files)
	}
	return result, nil
}

// readMemberRange reads a part of a member without reading the rest of it.
func readMemberRange(p *payload, kind uint64, members []member, want rangeRequest) (*rangeRead, error) {
	for _, m := range members {
		if m.name != want.Member {
			continue
		}
		if want.Offset+want.Length > m.size {
			return nil, errors.New("the range reaches out of the member")
		}
		if kind == kindZip {
			if err := checkLocal(p, m); err != nil { // step 7
				return nil, err
			}
		}
		before := p.decrypted
		content, err := readRange(p, m.offset+want.Offset, want.Length)
		return &rangeRead{content, p.decrypted - before}, err
	}
	return nil, errors.New("no such member")
}

// checkPin is artifact-v1 §6.
func checkPin(file io.ReaderAt, fileBytes uint64, floe []byte, want *pin) error {
	if !bytes.Equal(floe[42:], want.FloeHeaderTag) {
		return mismatch("another header tag than the pin's")
	}
	if fileBytes != want.LengthBytes {
		return corrupt("another length than the pin's")
	}
	outer := sha256.New()
	for at := uint64(0); at < fileBytes; at += 8 << 20 {
		piece, err := readRange(file, at, min(8<<20, fileBytes-at))
		if err != nil {
			return err
		}
		digest := sha256.Sum256(piece)
		outer.Write(digest[:])
	}
	if !bytes.Equal(outer.Sum(nil), want.Digest) {
		return mismatch("another digest than the pin's")
	}
	return nil
}

// checkWithStandardLibrary has archive/zip read the same archive: names, contents and CRC-32s.
func checkWithStandardLibrary(p *payload, files []fileDigest) error {
	archive, err := zip.NewReader(p, int64(p.size()))
	if err != nil {
		return err
	}
	if len(archive.File) != len(files) {
		return errors.New("archive/zip finds another number of members")
	}
	for i, file := range archive.File {
		content, err := file.Open()
		if err != nil {
			return err
		}
		digest := sha256.New()
		if _, err := io.Copy(digest, content); err != nil { // compares the CRC-32 at the end
			return err
		}
		if file.Name != files[i].Name || !bytes.Equal(digest.Sum(nil), files[i].Sha256) {
			return errors.New("archive/zip reads something else")
		}
		at, err := file.DataOffset()
		if err != nil || at%64 != 0 || file.Method != zip.Store {
			return errors.New("a member is not stored at a multiple of 64")
		}
	}
	return nil
}
