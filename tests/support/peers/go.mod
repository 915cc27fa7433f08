// What `make bench` measures artifacts beside (tests/support/tools.py): age, and Tink's streaming
// AEAD.
module modelkms.example/peers

go 1.26

require github.com/tink-crypto/tink-go/v2 v2.9.0

require (
	filippo.io/age v1.3.2 // indirect
	filippo.io/edwards25519 v1.2.0 // indirect
	filippo.io/hpke v0.4.0 // indirect
	filippo.io/nistec v0.0.4 // indirect
	golang.org/x/crypto v0.55.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
	golang.org/x/term v0.45.0 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)

tool (
	filippo.io/age/cmd/age
	filippo.io/age/cmd/age-keygen
	modelkms.example/peers/cmd/tinkstream
)
