{{/* Names, labels and the image. */}}

{{- define "cmt.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 26 | trimSuffix "-" -}}
{{- end -}}

{{- define "cmt.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "cmt.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cmt.selectorLabels" -}}
app.kubernetes.io/name: cmt
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cmt.image" -}}
{{- $tag := default (ternary (printf "%s-cuda" .Chart.AppVersion) .Chart.AppVersion .Values.gpu.enabled) .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* (root, component) */}}
{{- define "cmt.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.serviceAccount.create -}}
{{ include "cmt.fullname" $root }}-{{ index . 1 }}
{{- else -}}
{{ $root.Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "cmt.hasKeys" -}}
{{- if or .Values.auth.existingSecret .Values.auth.apiKeys -}}true{{- end -}}
{{- end -}}

{{- define "cmt.keysSecret" -}}
{{- default (printf "%s-api-keys" (include "cmt.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "cmt.bankClaim" -}}
{{- default (printf "%s-bank" (include "cmt.fullname" .)) .Values.bank.pvc.existingClaim -}}
{{- end -}}

{{- define "cmt.bankUri" -}}
{{- if eq .Values.bank.type "s3" -}}
{{ required "bank.s3.uri: say where the bank is, s3://bucket/prefix" .Values.bank.s3.uri }}
{{- else -}}
/var/lib/cmt/bank
{{- end -}}
{{- end -}}

{{/* The ingest's RayJob carries a hash of what it is made of: KubeRay doesn't change a running one, so a change makes a new one. */}}
{{- define "cmt.ingestName" -}}
{{- $config := omit (include "cmt.config" . | fromYaml) "serve" -}}
{{- $made := printf "%s\n%s" (toYaml $config) (include "cmt.ingestClusterSpec" .) -}}
{{ include "cmt.fullname" . }}-ingest-{{ sha256sum $made | trunc 8 }}
{{- end -}}

{{/* KubeRay empties Redis after the release is gone, by a job in the form of the head's pod: what that pod needs stays. */}}
{{- define "cmt.keptForRedis" -}}
{{- if .Values.query.gcsFaultTolerance.redisAddress -}}
helm.sh/resource-policy: keep
{{- end -}}
{{- end -}}
