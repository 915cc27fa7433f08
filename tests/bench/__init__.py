"""Benchmarks: side by side in one run, medians and ratios. They never fail on time."""

# grpc reads its environment when it is imported: servers in this process speak TLS 1.3 only.
import kms_service.rpc.tls_environment  # noqa: F401
