# Beside the officer's policy, for one officer and one occasion: destroys retired versions of one
# project's master key. Put the project's id for PROJECT; take it from the login again afterwards.
#
# The exact path counts before `transit/keys/modelkms-*`, which refuses this to every officer. There
# is no pattern here for all keys: a `+` that comes before the project's name would count after it.

path "transit/keys/modelkms-PROJECT/trim" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_available_version" = []
  }
}
