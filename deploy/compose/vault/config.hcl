# One node, raft on a volume. Give it a certificate: the service verifies it.
ui = false
listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/etc/openbao/tls/certificate.pem"
  tls_key_file  = "/etc/openbao/tls/key.pem"
}
storage "raft" {
  path    = "/openbao/file"
  node_id = "vault"
}
api_addr     = "https://vault:8200"
cluster_addr = "https://vault:8201"
