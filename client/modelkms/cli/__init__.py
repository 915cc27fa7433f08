"""The command line of ModelKMS (docs/guides/cli.md).

Modules here import the SDK inside functions only: `modelkms --help` and shell completion must not
wait for gRPC and cryptography to load.
"""
