# The security officer: makes and rotates master keys, sets their schedule; uses none of them,
# exports none, deletes none, trims none (trim.hcl is for that, and for one occasion).
#
# One stanza, since a trailing `*` also covers what lies below a key (rotate, config, trim), and of
# two stanzas that match, the one with the longer literal beginning counts alone. So what must be
# refused below a key is refused here, by its parameters.

path "transit/keys/modelkms-*" {
  capabilities = ["create", "read", "update"]
  # The only values allowed, not the ones denied: Vault reads "t", "T" and "TRUE" as true, too.
  allowed_parameters = {
    "exportable"             = [false]
    "allow_plaintext_backup" = [false]
    "deletion_allowed"       = [false]
    "derived"                = [true]
    "*"                      = []
  }
  denied_parameters = {
    "min_available_version" = []
  }
}

# Rotates the key that signs checkpoints of the audit log; cannot sign with it.
path "transit/keys/audit-modelkms/rotate" {
  capabilities = ["update"]
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
