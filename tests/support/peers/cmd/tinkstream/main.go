// Command tinkstream encrypts or decrypts a file with Tink's streaming AEAD: AES-256-GCM-HKDF with
// segments of 1 MiB, as its key template AES256_GCM_HKDF_1MB has them.
//
//	tinkstream encrypt|decrypt IN OUT
package main

import (
	"io"
	"log"
	"os"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: tinkstream encrypt|decrypt IN OUT")
	}
	// A benchmark's key: there is nothing to keep secret.
	cipher, err := subtle.NewAESGCMHKDF(make([]byte, 32), "SHA256", 32, 1<<20, 0)
	check(err)
	in, err := os.Open(os.Args[2])
	check(err)
	out, err := os.Create(os.Args[3])
	check(err)
	buffer := make([]byte, 1<<20)
	switch os.Args[1] {
	case "encrypt":
		writer, err := cipher.NewEncryptingWriter(out, nil)
		check(err)
		_, err = io.CopyBuffer(onlyWriter{writer}, onlyReader{in}, buffer)
		check(err)
		check(writer.Close())
	case "decrypt":
		reader, err := cipher.NewDecryptingReader(in, nil)
		check(err)
		_, err = io.CopyBuffer(onlyWriter{out}, onlyReader{reader}, buffer)
		check(err)
	default:
		log.Fatalf("no command %q", os.Args[1])
	}
	check(out.Close())
}

// Without their other methods: so that the buffer above is used.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
