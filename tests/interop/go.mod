module github.com/modelkms/modelkms/tests/interop

go 1.26
