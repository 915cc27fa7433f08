# The ModelKMS service: uses master keys, administers none.
# `update` without `create`: with `create`, transit would make a missing key on the way.

path "transit/datakey/plaintext/modelkms-*" {
  capabilities = ["update"]
}

path "transit/decrypt/modelkms-*" {
  capabilities = ["update"]
}

path "transit/rewrap/modelkms-*" {
  capabilities = ["update"]
}

path "transit/keys/modelkms-*" {
  capabilities = ["read"]
}

# Signs checkpoints of the audit log. Not named modelkms-…: no project's key, so none of the above.
path "transit/sign/audit-modelkms" {
  capabilities = ["update"]
}

path "transit/keys/audit-modelkms" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Tombstones of destroyed versions: made and read, never changed (`create` without `update`), never
# deleted.
path "modelkms/data/tombstones/*" {
  capabilities = ["create", "read"]
}

path "modelkms/metadata/tombstones" {
  capabilities = ["list"]
}
