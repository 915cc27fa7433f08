"""The API of ModelKMS: .proto files, their stubs, and the byte layouts both sides bind."""

__version__ = "0.1.0"
