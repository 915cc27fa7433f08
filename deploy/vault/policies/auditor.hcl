# The auditor: sees which master keys there are and what state they are in; changes nothing.

path "transit/keys" {
  capabilities = ["list"]
}

path "transit/keys/modelkms-*" {
  capabilities = ["read"]
}

# The public keys that verify checkpoints of the audit log.
path "transit/keys/audit-modelkms" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

path "modelkms/data/tombstones/*" {
  capabilities = ["read"]
}

path "modelkms/metadata/tombstones" {
  capabilities = ["list"]
}
