{{- define "modelkms.selector" -}}
app.kubernetes.io/name: modelkms
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "modelkms.labels" -}}
{{ include "modelkms.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "modelkms.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "modelkms.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* server.toml: the values' sections, and over them what the chart mounts. */ -}}
{{- define "modelkms.config" -}}
{{- $tls := "/etc/modelkms/tls" -}}
{{- $secrets := "/etc/modelkms/secrets" -}}
{{- $server := merge (dict "listen" "0.0.0.0:7443" "certificate_file" (printf "%s/tls.crt" $tls) "key_file" (printf "%s/tls.key" $tls) "client_ca_file" (printf "%s/ca.crt" $tls)) .Values.config.server -}}
{{- $vault := deepCopy .Values.config.vault -}}
{{- if .Values.secrets.vaultAppRole -}}
{{- $_ := set $vault "role_id_file" (printf "%s/vault/role-id" $secrets) -}}
{{- $_ := set $vault "secret_id_file" (printf "%s/vault/secret-id" $secrets) -}}
{{- end -}}
{{- if .Values.secrets.vaultCa -}}
{{- $_ := set $vault "ca_file" (printf "%s/vault-ca/ca.pem" $secrets) -}}
{{- end -}}
{{- $database := deepCopy .Values.config.database -}}
{{- if .Values.secrets.database -}}
{{- $_ := set $database "password_file" (printf "%s/database/password" $secrets) -}}
{{- end -}}
{{- $store := deepCopy .Values.config.store -}}
{{- if .Values.secrets.store -}}
{{- $_ := set $store "credentials_file" (printf "%s/store/credentials.toml" $secrets) -}}
{{- end -}}
{{- $audit := merge (dict "folder" "/var/lib/modelkms/audit") (.Values.config.audit | default dict) -}}
{{- $own := dict "server" $server "metrics" (dict "listen" "0.0.0.0:9464") "vault" $vault "database" $database "store" $store "policy" (merge (dict "folder" "/etc/modelkms/policies") (.Values.config.policy | default dict)) "audit" $audit -}}
{{- toToml (merge $own (deepCopy .Values.config)) -}}
{{- end }}

{{- define "modelkms.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "modelkms.mounts" -}}
- {name: config, mountPath: /etc/modelkms/server.toml, subPath: server.toml, readOnly: true}
- {name: policies, mountPath: /etc/modelkms/policies, readOnly: true}
- {name: tls, mountPath: /etc/modelkms/tls, readOnly: true}
{{- if .Values.secrets.vaultAppRole }}
- {name: vault, mountPath: /etc/modelkms/secrets/vault, readOnly: true}
{{- end }}
{{- if .Values.secrets.vaultCa }}
- {name: vault-ca, mountPath: /etc/modelkms/secrets/vault-ca, readOnly: true}
{{- end }}
{{- if .Values.secrets.database }}
- {name: database, mountPath: /etc/modelkms/secrets/database, readOnly: true}
{{- end }}
{{- if .Values.secrets.store }}
- {name: store, mountPath: /etc/modelkms/secrets/store, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "modelkms.volumes" -}}
- name: config
  configMap: {name: {{ include "modelkms.name" . }}-config}
- name: policies
  configMap: {name: {{ include "modelkms.name" . }}-policies}
- name: tls
{{- if eq .Values.certificate.from "csi" }}
  csi: {driver: {{ .Values.certificate.csiDriver }}, readOnly: true}
{{- else }}
  secret: {secretName: {{ .Values.certificate.secretName }}, defaultMode: 0440}
{{- end }}
{{- range $volume, $secret := dict "vault" .Values.secrets.vaultAppRole "vault-ca" .Values.secrets.vaultCa "database" .Values.secrets.database "store" .Values.secrets.store }}
{{- if $secret }}
- name: {{ $volume }}
  secret: {secretName: {{ $secret }}, defaultMode: 0440}
{{- end }}
{{- end }}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- end }}
