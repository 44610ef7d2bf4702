{{/* The pods of both Ray clusters. */}}

{{- define "cmt.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cmt.podSecurity" -}}
runAsNonRoot: true
{{ toYaml .Values.podSecurityContext }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Secrets come by reference only. */}}
{{- define "cmt.env" -}}
- name: CMT_CONFIG
  value: /etc/cmt/cmt.yaml
- name: HOME
  value: /tmp
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
{{- with .Values.kafka.sasl }}
{{- if .existingSecret }}
- name: CMT_KAFKA__SASL_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret }}, key: {{ .usernameKey }}}
- name: CMT_KAFKA__SASL_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret }}, key: {{ .passwordKey }}}
{{- end }}
{{- end }}
{{- if and (eq .Values.bank.type "s3") .Values.bank.s3.existingSecret }}
- name: CMT_BANK__STORAGE_OPTIONS__ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ .Values.bank.s3.existingSecret }}, key: access-key-id}
- name: CMT_BANK__STORAGE_OPTIONS__SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ .Values.bank.s3.existingSecret }}, key: secret-access-key}
{{- end }}
{{- end -}}

{{- define "cmt.volumeMounts" -}}
- {name: config, mountPath: /etc/cmt, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: models, mountPath: /var/cache/cmt}
{{- if eq .Values.bank.type "pvc" }}
- {name: bank, mountPath: /var/lib/cmt}
{{- end }}
{{- if .Values.kafka.tls.existingSecret }}
- {name: kafka-tls, mountPath: /etc/cmt/kafka, readOnly: true}
{{- end }}
{{- end -}}

{{- define "cmt.volumes" -}}
- name: config
  configMap: {name: {{ include "cmt.fullname" . }}-config}
- name: tmp
  emptyDir: {sizeLimit: 4Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: 512Mi}
{{- if eq .Values.models.source "pvc" }}
- name: models
  persistentVolumeClaim: {claimName: {{ required "models.existingClaim: which claim holds the models?" .Values.models.existingClaim }}}
{{- else }}
- name: models
  emptyDir: {sizeLimit: {{ .Values.models.size }}}
{{- end }}
{{- if eq .Values.bank.type "pvc" }}
- name: bank
  persistentVolumeClaim: {claimName: {{ include "cmt.bankClaim" . }}}
{{- end }}
{{- if .Values.kafka.tls.existingSecret }}
- name: kafka-tls
  secret: {secretName: {{ .Values.kafka.tls.existingSecret }}}
{{- end }}
{{- end -}}

{{/* (root, component, role): a readiness that stops traffic, a liveness that restarts. Ray's health routes ask for no token. */}}
{{- define "cmt.probes" -}}
{{- $component := index . 1 -}}
{{- $role := index . 2 -}}
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
readinessProbe:
  {{- if eq $role "head" }}
  httpGet: {path: /api/gcs_healthz, port: 8265}
  {{- else if eq $component "query" }}
  httpGet: {path: /-/healthz, port: 8000}
  {{- else }}
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* (root, component, role): what ends first when a pod is told to end. */}}
{{- define "cmt.preStop" -}}
{{- $root := index . 0 -}}
{{- if and (eq (index . 1) "ingest") (eq (index . 2) "head") -}}
cmt ingest drain; ray stop
{{- else if eq (index . 1) "query" -}}
sleep {{ $root.Values.query.drainSeconds }}; ray stop
{{- else -}}
ray stop
{{- end -}}
{{- end -}}

{{/* (root, component, role, resources) */}}
{{- define "cmt.rayContainer" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $role := index . 2 -}}
{{- $part := index $root.Values $component -}}
{{- $resources := deepCopy (index . 3) -}}
{{- if and $root.Values.gpu.enabled (eq $role "worker") -}}
{{- $_ := set $resources.limits $root.Values.gpu.resource 1 -}}
{{- end -}}
name: ray-{{ $role }}
image: {{ include "cmt.image" $root }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  {{- include "cmt.containerSecurity" $root | nindent 2 }}
env:
  {{- include "cmt.env" $root | nindent 2 }}
  {{- if and (eq $component "query") (include "cmt.hasKeys" $root) }}
  - name: CMT_SERVE__API_KEYS
    valueFrom:
      secretKeyRef: {name: {{ include "cmt.keysSecret" $root }}, key: api-keys}
  {{- end }}
  {{- if and (eq $component "ingest") (eq $role "head") }}
  - name: RAY_JOB_STOP_WAIT_TIME_S # between the job's SIGTERM and SIGKILL, when KubeRay ends it
    value: {{ sub (int $part.terminationGracePeriodSeconds) 10 | quote }}
  {{- end }}
  {{- with $part.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - {name: metrics, containerPort: 8080}
  {{- if eq $role "head" }}
  - {name: gcs-server, containerPort: 6379}
  - {name: dashboard, containerPort: 8265}
  {{- end }}
  {{- if eq $component "query" }}
  - {name: serve, containerPort: 8000}
  {{- end }}
resources:
  {{- toYaml $resources | nindent 2 }}
{{ include "cmt.probes" . }}
lifecycle:
  preStop:
    exec:
      command: [/bin/sh, -c, {{ include "cmt.preStop" . | quote }}]
volumeMounts:
  {{- include "cmt.volumeMounts" $root | nindent 2 }}
{{- end -}}

{{/* (root, component, role, resources) */}}
{{- define "cmt.podTemplate" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $role := index . 2 -}}
{{- $part := index $root.Values $component -}}
metadata:
  labels:
    {{- include "cmt.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $component }}
    cmt/role: {{ $role }}
  annotations:
    {{- if eq $component "query" }}
    checksum/config: {{ include "cmt.configOfQueryPods" $root | sha256sum }}
    checksum/keys: {{ toJson $root.Values.auth.apiKeys | sha256sum }}
    {{- end }}
    {{- with $part.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "cmt.serviceAccount" (list $root $component) }}
  automountServiceAccountToken: {{ eq $role "head" }} # Ray's autoscaler sits beside the head
  enableServiceLinks: false # a Service named cmt-... would look like a setting, CMT_...
  terminationGracePeriodSeconds: {{ $part.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "cmt.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if and $root.Values.gpu.enabled $root.Values.gpu.runtimeClassName (eq $role "worker") }}
  runtimeClassName: {{ $root.Values.gpu.runtimeClassName }}
  {{- end }}
  {{- with $part.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $part.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $part.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $part.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq $role "worker" }}
  topologySpreadConstraints:
    {{- if $part.topologySpreadConstraints }}
    {{- toYaml $part.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "cmt.selectorLabels" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $component }}
          cmt/role: worker
    {{- end }}
  {{- end }}
  containers:
    - {{- include "cmt.rayContainer" . | nindent 6 }}
  volumes:
    {{- include "cmt.volumes" $root | nindent 4 }}
{{- end -}}

{{/* (API versions of the cluster, ray.tokenAuth, tag of the operator that is installed too): why they don't go together. KubeRay 1.6
is known by the kind that it brought; a tag that is no version tells nothing. */}}
{{- define "cmt.kuberayProblem" -}}
{{- $known := index . 0 -}}
{{- $tag := index . 2 | default "" | trimPrefix "v" -}}
{{- $old := and (has "ray.io/v1/RayCluster" $known) (not (has "ray.io/v1/RayCronJob" $known)) -}}
{{- if regexMatch "^[0-9]+\\.[0-9]+\\.[0-9]+" $tag -}}
{{- $old = or $old (semverCompare "<1.6.0-0" $tag) -}}
{{- end -}}
{{- if and (index . 1) $old -}}
ray.tokenAuth: KubeRay is older than 1.6 here, which hands no tokens to jobs; install 1.6, or set ray.tokenAuth=false
{{- end -}}
{{- end -}}

{{/* (root, component): the spec of a RayCluster. */}}
{{- define "cmt.rayClusterSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $part := index $root.Values $component -}}
{{- $models := ternary "replicas" "compressors" (eq $component "query") -}}
{{- if gt (int (index $part $models).max) (int $part.workers.max) -}}
{{- fail (printf "%s.workers.max: each of up to %v %s needs a worker pod" $component (index $part $models).max $models) -}}
{{- end -}}
{{- $operator := index $root.Values "kuberay-operator" -}}
{{- $tag := ternary (dig "image" "tag" "" $operator) "" $operator.enabled -}}
{{- with include "cmt.kuberayProblem" (list $root.Capabilities.APIVersions $root.Values.ray.tokenAuth $tag) -}}
{{- fail . -}}
{{- end -}}
rayVersion: {{ $root.Values.ray.version | quote }}
{{- if $root.Values.ray.tokenAuth }}
authOptions:
  mode: token
{{- end }}
enableInTreeAutoscaling: true
autoscalerOptions:
  idleTimeoutSeconds: 300
  env:
    - {name: HOME, value: /tmp}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
  resources:
    requests: {cpu: 200m, memory: 512Mi}
    limits: {cpu: 500m, memory: 1Gi}
  securityContext:
    {{- include "cmt.containerSecurity" $root | nindent 4 }}
{{- if and (eq $component "query") $part.gcsFaultTolerance.redisAddress }}
gcsFaultToleranceOptions:
  redisAddress: {{ $part.gcsFaultTolerance.redisAddress | quote }}
  {{- if $part.gcsFaultTolerance.existingSecret }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ $part.gcsFaultTolerance.existingSecret }}, key: password}
  {{- end }}
{{- end }}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    num-cpus: "0"
    dashboard-host: 0.0.0.0
    metrics-export-port: "8080"
    dashboard-agent-listen-port: "52365"
    object-store-memory: "268435456"
  template:
    {{- include "cmt.podTemplate" (list $root $component "head" $part.headResources) | nindent 4 }}
workerGroupSpecs:
  - groupName: workers
    replicas: {{ $part.workers.min }}
    minReplicas: {{ $part.workers.min }}
    maxReplicas: {{ $part.workers.max }}
    rayStartParams:
      num-cpus: "1" # one model a pod, with all of its cores
      metrics-export-port: "8080"
      dashboard-agent-listen-port: "52365"
      object-store-memory: "268435456"
    template:
      {{- include "cmt.podTemplate" (list $root $component "worker" $part.workerResources) | nindent 6 }}
{{- end -}}

{{- define "cmt.ingestClusterSpec" -}}
{{- include "cmt.rayClusterSpec" (list . "ingest") -}}
{{- end -}}
