package main

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// wish says which model to open, of which service, as whom.
type wish struct {
	Endpoint        string `json:"endpoint"`
	CaFile          string `json:"ca_file"`
	CertificateFile string `json:"certificate_file"`
	KeyFile         string `json:"key_file"`
	// Principal is our own SPIFFE ID.
	Principal string `json:"principal"`
	// Name is a resource name of a model, an alias or a version.
	Name  string `json:"name"`
	Suite uint16 `json:"suite"`
	// Leases is how many to take under the one key pair; the last one opens the model.
	Leases int `json:"leases"`
}

type openedModel struct {
	Version    string    `json:"version"`
	LeaseNames []string  `json:"leases"`
	Sessions   []string  `json:"sessions"`
	Contents   *contents `json:"contents"`
}

// openModel is what a client does: a key pair, a lease, the answer opened, the artifact fetched,
// checked against the pin that the answer is bound to, and read.
func openModel(input io.Reader) (*openedModel, error) {
	var w wish
	if err := json.NewDecoder(input).Decode(&w); err != nil {
		return nil, err
	}
	server, err := dial(w.Endpoint, w.CaFile, w.CertificateFile, w.KeyFile)
	if err != nil {
		return nil, err
	}
	private, err := newPair(w.Suite)
	if err != nil {
		return nil, err
	}
	result := &openedModel{}
	sessions := map[string]bool{}
	for range w.Leases {
		leased, err := server.lease(&w, private)
		if err != nil {
			return nil, err
		}
		result.Version = leased.version
		result.LeaseNames = append(result.LeaseNames, leased.lease)
		if !sessions[leased.session] {
			sessions[leased.session] = true
			result.Sessions = append(result.Sessions, leased.session)
		}
		if result.Contents != nil {
			continue
		}
		if result.Contents, err = server.fetch(leased); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// newPair is KT-1.
func newPair(suite uint16) (hpke.PrivateKey, error) {
	switch suite {
	case 1:
		return hpke.MLKEM768X25519().GenerateKey()
	case 2:
		return hpke.DHKEM(ecdh.X25519()).GenerateKey()
	}
	return nil, fmt.Errorf("no suite %d", suite)
}

type leased struct {
	version, versionUID, artifactID, lease, session string
	pin                                             *pin
	dataKey                                         []byte
}

func (s *service) lease(w *wish, private hpke.PrivateKey) (*leased, error) {
	var v vector
	v.Suite, v.Principal = w.Suite, w.Principal
	v.ClientKey.PublicKey = private.PublicKey().Bytes()
	v.ClientKey.RequestNonce = make([]byte, 32) // KT-2
	rand.Read(v.ClientKey.RequestNonce)

	offer := appendNumber(nil, 1, uint64(w.Suite))
	offer = appendBytes(offer, 2, v.ClientKey.PublicKey)
	offer = appendBytes(offer, 3, v.ClientKey.RequestNonce)
	message := appendBytes(appendBytes(nil, 1, []byte(w.Name)), 3, offer)
	result := &leased{}
	err := s.call("/modelkms_api.v1.KeyService/LeaseDataKey", message, func(answer fields) error {
		lease, err1 := answer.message(1)
		version, err2 := answer.message(2)
		dataKey, err3 := answer.message(4)
		duration, err4 := answer.message(5)
		pinned, err5 := version.message(7)
		session, err6 := dataKey.message(1)
		if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
			return err
		}
		if lease.text(2) != version.text(1) {
			return errors.New("a lease of another version")
		}
		// KT-9, KT-11.
		if session.numbers[1] != uint64(w.Suite) || duration.numbers[2]%1_000_000 != 0 {
			return failure{"KEY_ANSWER_INVALID", "another suite, or a duration of odd length"}
		}
		result.version, result.versionUID = version.text(1), version.text(2)
		result.artifactID, result.lease = version.text(9), lease.text(1)
		result.pin = &pin{pinned.numbers[1], pinned.bytes[2], pinned.bytes[3]}
		v.Binding.Purpose, v.Binding.Lease = "lease", lease.text(1)
		v.Binding.VersionUID, v.Binding.Pin = version.text(2), result.pin
		v.Binding.LeaseDurationMs = duration.numbers[1]*1000 + duration.numbers[2]/1_000_000
		v.Answer.SessionID, v.Answer.EncryptedSecret = session.bytes[2], session.bytes[3]
		v.Answer.Nonce, v.Answer.Ciphertext = dataKey.bytes[2], dataKey.bytes[3]
		return nil
	})
	if err != nil {
		return nil, err
	}
	opened, err := v.open(private)
	if err != nil {
		return nil, err
	}
	result.session, result.dataKey = string(fmt.Appendf(nil, "%x", v.Answer.SessionID)), opened.DataKey
	return result, nil
}

// fetch reads the artifact through the service, and opens it.
func (s *service) fetch(l *leased) (*contents, error) {
	folder, err := os.MkdirTemp("", "interop-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "artifact")
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	message := appendBytes(nil, 1, []byte(l.version))
	err = s.call("/modelkms_api.v1.ArtifactService/ReadArtifact", message, func(answer fields) error {
		_, err := file.Write(answer.bytes[1])
		return err
	})
	if err != nil {
		return nil, err
	}
	r := request{
		File: path, Key: l.dataKey, Version: l.version, VersionUID: l.versionUID,
		ArtifactID: l.artifactID, Pin: l.pin,
	}
	return r.read()
}
