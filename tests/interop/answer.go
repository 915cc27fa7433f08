package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// hexBytes is lower-case hexadecimal in JSON.
type hexBytes []byte

func (b *hexBytes) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	decoded, err := hex.DecodeString(text)
	*b = decoded
	return err
}

func (b hexBytes) MarshalJSON() ([]byte, error) { return json.Marshal(hex.EncodeToString(b)) }

// vector is a key answer with all that is needed to open it (key-transport-v1 §8).
type vector struct {
	Suite      uint16 `json:"suite"`
	PrivateKey struct {
		Seed      hexBytes `json:"seed"`
		MlkemSeed hexBytes `json:"mlkem_seed"`
		X25519    hexBytes `json:"x25519"`
	} `json:"private_key"`
	ClientKey struct {
		PublicKey    hexBytes `json:"public_key"`
		RequestNonce hexBytes `json:"request_nonce"`
	} `json:"client_key"`
	Principal string `json:"principal"`
	Binding   struct {
		Purpose         string `json:"purpose"`
		Lease           string `json:"lease"`
		VersionUID      string `json:"version_uid"`
		Pin             *pin   `json:"pin"`
		LeaseDurationMs uint64 `json:"lease_duration_ms"`
	} `json:"binding"`
	Answer struct {
		SessionID       hexBytes `json:"session_id"`
		EncryptedSecret hexBytes `json:"encrypted_secret"`
		Nonce           hexBytes `json:"nonce"`
		Ciphertext      hexBytes `json:"ciphertext"`
	} `json:"answer"`
}

type pin struct {
	LengthBytes   uint64   `json:"length_bytes"`
	FloeHeaderTag hexBytes `json:"floe_header_tag"`
	Digest        hexBytes `json:"digest"`
}

type opened struct {
	DataKey       hexBytes `json:"data_key"`
	SessionSecret hexBytes `json:"session_secret"`
	Info          hexBytes `json:"info"`
	Aad           hexBytes `json:"aad"`
}

func openAnswer(input io.Reader) (*opened, error) {
	var v vector
	if err := json.NewDecoder(input).Decode(&v); err != nil {
		return nil, err
	}
	private, err := v.privateKey()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(private.PublicKey().Bytes(), v.ClientKey.PublicKey) {
		return nil, errors.New("the public key in wire form is not that of the private key")
	}
	return v.open(private)
}

func (v *vector) open(private hpke.PrivateKey) (*opened, error) {
	// KT-9.
	if len(v.Answer.SessionID) != 16 || len(v.Answer.Nonce) != 12 || len(v.Answer.Ciphertext) != 48 {
		return nil, failure{"KEY_ANSWER_INVALID", "a part of the answer has a wrong length"}
	}
	// §4.
	info := lengthPrefixed(
		[]byte("modelkms-key-transport-v1"),
		binary.BigEndian.AppendUint16(nil, v.Suite),
		[]byte(v.Principal),
		v.ClientKey.PublicKey,
		v.Answer.SessionID,
	)
	secret, err := hpke.Open(
		private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, v.Answer.EncryptedSecret)
	if err != nil {
		return nil, failure{"KEY_ANSWER_INVALID", err.Error()}
	}
	if len(secret) != 32 {
		return nil, failure{"KEY_ANSWER_INVALID", "the secret has a wrong length"}
	}
	// §5.
	var pinned []byte
	if p := v.Binding.Pin; p != nil {
		pinned = lengthPrefixed(u64(p.LengthBytes), p.FloeHeaderTag, p.Digest)
	}
	aad := lengthPrefixed(
		[]byte("modelkms-key-answer-v1"),
		[]byte(v.Binding.Purpose),
		v.ClientKey.RequestNonce,
		[]byte(v.Binding.Lease),
		[]byte(v.Binding.VersionUID),
		pinned,
		u64(v.Binding.LeaseDurationMs),
	)
	aead, err := gcm(secret)
	if err != nil {
		return nil, err
	}
	key, err := aead.Open(nil, v.Answer.Nonce, v.Answer.Ciphertext, aad)
	if err != nil {
		return nil, failure{"KEY_ANSWER_INVALID", err.Error()}
	}
	return &opened{key, secret, info, aad}, nil
}

// privateKey takes the KEM's own seed where there is one, so that its expansion is checked too.
func (v *vector) privateKey() (hpke.PrivateKey, error) {
	switch v.Suite {
	case 1:
		kem := hpke.MLKEM768X25519()
		if kem.ID() != 0x647A {
			return nil, fmt.Errorf("MLKEM768X25519 has another id: %#x", kem.ID())
		}
		if v.PrivateKey.Seed != nil {
			return kem.NewPrivateKey(v.PrivateKey.Seed)
		}
		quantum, err := mlkem.NewDecapsulationKey768(v.PrivateKey.MlkemSeed)
		if err != nil {
			return nil, err
		}
		classic, err := ecdh.X25519().NewPrivateKey(v.PrivateKey.X25519)
		if err != nil {
			return nil, err
		}
		return hpke.NewHybridPrivateKey(quantum, classic)
	case 2:
		return hpke.DHKEM(ecdh.X25519()).NewPrivateKey(v.PrivateKey.X25519)
	}
	return nil, fmt.Errorf("no suite %d", v.Suite)
}

// lengthPrefixed is LP of key-transport-v1 §2.
func lengthPrefixed(parts ...[]byte) []byte {
	var out []byte
	for _, part := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

func u64(x uint64) []byte { return binary.BigEndian.AppendUint64(nil, x) }

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
