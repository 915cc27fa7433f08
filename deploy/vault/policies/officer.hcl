# The security officer: makes and rotates master keys, sets their schedule; uses none of them,
# exports none, deletes none.

path "transit/keys/modelkms-*" {
  capabilities = ["create", "read", "update"]
  denied_parameters = {
    "exportable"             = [true, "true", "1", 1]
    "allow_plaintext_backup" = [true, "true", "1", 1]
    "derived"                = [false, "false", "0", 0]
  }
}

path "transit/keys/+/rotate" {
  capabilities = ["update"]
}

path "transit/keys/+/config" {
  capabilities = ["update"]
  denied_parameters = {
    "exportable"             = [true, "true", "1", 1]
    "allow_plaintext_backup" = [true, "true", "1", 1]
    "deletion_allowed"       = [true, "true", "1", 1]
  }
}

path "transit/keys" {
  capabilities = ["list"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
