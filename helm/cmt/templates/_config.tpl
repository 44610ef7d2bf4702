{{/* cmt.yaml: the given settings, and over them what the chart decides. */}}

{{- define "cmt.bootstrap" -}}
{{- if .Values.kafka.bootstrapServers -}}
{{ .Values.kafka.bootstrapServers }}
{{- else if .Values.strimzi.enabled -}}
{{ include "cmt.fullname" . }}-kafka-bootstrap:9092
{{- else -}}
{{ fail "kafka.bootstrapServers: give the brokers, or set strimzi.enabled" }}
{{- end -}}
{{- end -}}

{{- define "cmt.derivedSettings" -}}
ray: {address: auto}
kafka:
  bootstrap_servers: {{ include "cmt.bootstrap" . | quote }}
  {{- if .Values.strimzi.enabled }}
  create_topics: false
  {{- end }}
  {{- with .Values.kafka.tls }}
  {{- if .existingSecret }}
  ssl_cafile: /etc/cmt/kafka/{{ .caKey }}
  {{- if .certKey }}
  ssl_certfile: /etc/cmt/kafka/{{ .certKey }}
  ssl_keyfile: /etc/cmt/kafka/{{ .keyKey }}
  {{- end }}
  {{- end }}
  {{- end }}
bank:
  uri: {{ include "cmt.bankUri" . | quote }}
  {{- if eq .Values.bank.type "s3" }}
  storage_options:
    region: {{ .Values.bank.s3.region | quote }}
    {{- if .Values.bank.s3.endpoint }}
    endpoint: {{ .Values.bank.s3.endpoint | quote }}
    {{- end }}
    {{- if .Values.bank.s3.allowHttp }}
    allow_http: "true"
    {{- end }}
  {{- end }}
model:
  device: {{ ternary "cuda" "cpu" .Values.gpu.enabled }}
  cache_dir: /var/cache/cmt
ingest:
  compressors: {{ .Values.ingest.compressors.min }}
  max_compressors: {{ .Values.ingest.compressors.max }}
  compressor_gpus: {{ ternary "1.0" "0.0" .Values.gpu.enabled }}
  consumers: {{ .Values.ingest.consumers }}
serve:
  host: 0.0.0.0
  port: 8000
  replicas: {{ .Values.query.replicas.max }}
  gpus: {{ ternary "1.0" "0.0" .Values.gpu.enabled }}
  allow_anonymous: {{ not (include "cmt.hasKeys" .) }}
{{- end -}}

{{- define "cmt.config" -}}
{{- $derived := include "cmt.derivedSettings" . | fromYaml -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.settings) $derived) -}}
{{- end -}}

{{/* What a change of must start new query pods: all but what Serve exchanges in the running ones. */}}
{{- define "cmt.configOfQueryPods" -}}
{{- $config := include "cmt.config" . | fromYaml -}}
{{- $_ := set $config "model" (omit $config.model "llm" "checkpoint" "bits_per_token" "retriever") -}}
{{- $_ := set $config "bank" (omit $config.bank "uri") -}}
{{- toYaml (omit $config "ingest") -}}
{{- end -}}

{{- define "cmt.serveConfig" -}}
{{- $model := .Values.settings.model -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
applications:
  - name: cmt
    route_prefix: /
    import_path: services.query.ray_serve.serve_app:application
    deployments:
      - name: Engine
        {{- with .Values.query.replicas }}
        {{- if eq (int .min) (int .max) }}
        num_replicas: {{ .min }}
        {{- else }}
        autoscaling_config:
          min_replicas: {{ .min }}
          max_replicas: {{ .max }}
          target_ongoing_requests: {{ $.Values.query.targetOngoing }}
        {{- end }}
        {{- end }}
        user_config:
          llm: {{ $model.llm | quote }}
          checkpoint: {{ $model.checkpoint | quote }}
          bits_per_token: {{ with $model.bits_per_token }}{{ int . | toString | quote }}{{ else }}""{{ end }}
          retriever: {{ $model.retriever | quote }}
          bank: {{ include "cmt.bankUri" . | quote }}
{{- end -}}
