{{- /* Variables of a stage's own container, as JSON. Takes root and pod. */ -}}
{{- define "pocketvlm.stageEnv" -}}
{{- $pod := .pod -}}
{{- $env := include "pocketvlm.storeEnv" .root | fromJsonArray -}}
{{- $env = append $env (dict "name" "POCKETVLM_SCRATCH" "value" "/work") -}}
{{- $env = append $env (dict "name" "POCKETVLM_CACHE" "value" "/work/cache") -}}
{{- $env = append $env (dict "name" "HF_HOME" "value" "/work/huggingface") -}}
{{- $env = append $env (dict "name" "POCKETVLM_METRICS_PORT" "value" (int64 .root.Values.metrics.port | toString)) -}}
{{- if eq .component "labeller" -}}
{{- range $variable, $key := include "pocketvlm.keys" .root | fromJson -}}
{{- $env = append $env (dict "name" (printf "%s_FILE" $variable) "value" (printf "/run/secrets/keys/%s" $key)) -}}
{{- end -}}
{{- end -}}
{{- if gt (int $pod.shards) 1 -}}
{{- $env = append $env (dict "name" "POCKETVLM_SHARDS" "value" (int64 $pod.shards | toString)) -}}
{{- end -}}
{{- /* Without it a stage would start a thread for every core of the node. */ -}}
{{- $resources := $pod.resources | default dict -}}
{{- $cpu := "" -}}
{{- if ($resources.limits | default dict).cpu -}}{{- $cpu = "limits.cpu" -}}
{{- else if ($resources.requests | default dict).cpu -}}{{- $cpu = "requests.cpu" -}}{{- end -}}
{{- with $cpu -}}
{{- $field := dict "resourceFieldRef" (dict "resource" . "divisor" "1") -}}
{{- $env = append $env (dict "name" "POCKETVLM_THREADS" "valueFrom" $field) -}}
{{- end -}}
{{- toJson $env -}}
{{- end }}

{{- /* Variable -> key in `keys.existingSecret`, of the keys that are set, as JSON. */ -}}
{{- define "pocketvlm.keys" -}}
{{- $keys := .Values.keys -}}
{{- $found := dict -}}
{{- range $variable, $key := dict "OPENAI_API_KEY" $keys.teacherKey "POCKETVLM_SECOND_TEACHER_API_KEY" $keys.secondTeacherKey "UNSPLASH_ACCESS_KEY" $keys.unsplashKey "KAGGLE_USERNAME" $keys.kaggleUsernameKey "KAGGLE_KEY" $keys.kaggleKeyKey -}}
{{- if $key -}}{{- $_ := set $found $variable $key -}}{{- end -}}
{{- end -}}
{{- if and $found (not $keys.existingSecret) -}}
{{- fail (printf "keys: %s is set, and keys.existingSecret is not; name the secret that holds it" ($found | values | first)) -}}
{{- end -}}
{{- if and $keys.existingSecret (not $found) -}}
{{- fail (printf "keys.existingSecret: no key of the secret %s is named; set keys.teacherKey, or what else is in it" $keys.existingSecret) -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{- /* Command and arguments. The image's entry point is pocketvlm; more than one process is accelerate's to start. */ -}}
{{- define "pocketvlm.stageCommand" -}}
{{- $pod := .pod -}}
{{- $stage := list "stage" .component "/etc/pocketvlm/run.yaml" -}}
{{- $gpus := int $pod.gpus -}}
{{- $nodes := int ($pod.nodes | default 1) -}}
{{- if and (gt $nodes 1) (lt $gpus 1) -}}
{{- fail (printf "%s.nodes: %d nodes and no GPU; set %s.gpus, the GPUs of each node" $pod.path $nodes $pod.path) -}}
{{- end -}}
{{- if gt (mul $gpus $nodes) 1 -}}
{{- $launch := list "launch" "--multi_gpu" "--num_processes" (mul $gpus $nodes | toString) "--mixed_precision" "no" "--dynamo_backend" "no" "--main_process_port" (int64 $pod.rendezvousPort | toString) "--num_machines" (toString $nodes) -}}
{{- if gt $nodes 1 -}}
{{- $name := include "pocketvlm.name" . -}}
{{- $launch = concat $launch (list "--machine_rank" "$(JOB_COMPLETION_INDEX)" "--main_process_ip" (printf "%s-0.%s" $name $name)) -}}
{{- end -}}
command: ["accelerate"]
args: {{ concat $launch (list "--module" "pocketvlm") $stage | toJson }}
{{- else -}}
args: {{ toJson $stage }}
{{- end -}}
{{- end }}

{{- define "pocketvlm.stageVolumes" -}}
{{- $pod := .pod -}}
- name: run
  configMap: {name: {{ include "pocketvlm.name" (dict "root" .root "component" "run") }}}
- name: work
  emptyDir: {sizeLimit: {{ $pod.workSize }}}
- name: tmp
  emptyDir: {sizeLimit: {{ $pod.tmpSize }}}
{{- with $pod.shmSize }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}
{{- with include "pocketvlm.secretVolume" .root }}
{{ . }}
{{- end }}
{{- $keys := include "pocketvlm.keys" .root | fromJson }}
{{- if and (eq .component "labeller") $keys }}
- name: keys
  secret:
    secretName: {{ .root.Values.keys.existingSecret | quote }}
    items:
      {{- range $keys | values | uniq | sortAlpha }}
      - {key: {{ . | quote }}, path: {{ . | quote }}}
      {{- end }}
{{- end }}
{{- with $pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pocketvlm.stageMounts" -}}
{{- $pod := .pod -}}
- {name: run, mountPath: /etc/pocketvlm, readOnly: true}
- {name: work, mountPath: /work}
- {name: tmp, mountPath: /tmp}
{{- with $pod.shmSize }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- with include "pocketvlm.secretMount" .root }}
{{ . }}
{{- end }}
{{- if and (eq .component "labeller") (include "pocketvlm.keys" .root | fromJson) }}
- {name: keys, mountPath: /run/secrets/keys, readOnly: true}
{{- end }}
{{- with $pod.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The Job of a stage: suspended and gated until the conductor releases it. Takes root and component. */ -}}
{{- define "pocketvlm.stageJob" -}}
{{- $root := .root -}}
{{- $pod := include "pocketvlm.settings" . | fromJson -}}
{{- $name := include "pocketvlm.name" . -}}
{{- $context := dict "root" $root "component" .component "pod" $pod "account" "stages" -}}
{{- $labels := include "pocketvlm.labels" . | fromYaml -}}
{{- $jobLabels := deepCopy $labels -}}
{{- with $root.Values.kueue.queueName -}}{{- $_ := set $jobLabels "kueue.x-k8s.io/queue-name" . -}}{{- end -}}
{{- $shards := int ($pod.shards | default 1) -}}
{{- $nodes := int ($pod.nodes | default 1) -}}
{{- $pods := max $shards $nodes -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name | quote }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- merge $jobLabels ($pod.jobLabels | default dict) | toYaml | nindent 4 }}
  annotations:
    {{- merge (dict "kueue.x-k8s.io/admission-gated-by" (include "pocketvlm.gate" .)) ($pod.jobAnnotations | default dict) | toYaml | nindent 4 }}
spec:
  suspend: true
  {{- if gt $pods 1 }}
  completionMode: Indexed
  completions: {{ $pods }}
  parallelism: {{ $pods }}
  {{- end }}
  {{- if gt $shards 1 }}
  # A shard that is out of tries ends the Job: without it nothing can be published.
  backoffLimitPerIndex: {{ int64 $pod.backoffLimit }}
  maxFailedIndexes: 0
  {{- end }}
  backoffLimit: {{ mul (int $pod.backoffLimit) $pods }}
  activeDeadlineSeconds: {{ int64 $pod.activeDeadlineSeconds }}
  # Never two pods for one place: they would share a GPU, or a rank.
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
      # A person must act: run file or environment, data, gates (see errors.py).
      - action: FailJob
        onExitCodes: {operator: In, values: [2, 3, 4]}
      # Drained, preempted, evicted: no fault of the stage. The deadline bounds how often.
      - action: Ignore
        onPodConditions: [{type: DisruptionTarget, status: "True"}]
  template:
    metadata:
      labels:
        {{- merge $labels ($pod.podLabels | default dict) | toYaml | nindent 8 }}
      {{- with $pod.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "pocketvlm.podSettings" $context | nindent 6 }}
      {{- if gt $nodes 1 }}
      subdomain: {{ $name }}
      {{- end }}
      {{- if and (eq .component "labeller") $root.Values.objectStore.enabled }}
      initContainers:
        - name: bucket
          {{- include "pocketvlm.container" $context | nindent 10 }}
          args: ["bucket"]
          env:
            {{- include "pocketvlm.storeEnv" $root | fromJsonArray | toYaml | nindent 12 }}
          resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 512Mi}}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- include "pocketvlm.secretMount" $root | nindent 12 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          {{- include "pocketvlm.container" $context | nindent 10 }}
          {{- include "pocketvlm.stageCommand" $context | nindent 10 }}
          ports:
            - {name: metrics, containerPort: {{ int64 $root.Values.metrics.port }}}
          env:
            {{- include "pocketvlm.env" (dict "own" (include "pocketvlm.stageEnv" $context) "pod" $pod) | nindent 12 }}
          {{- with $pod.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            {{- include "pocketvlm.stageMounts" $context | nindent 12 }}
      volumes:
        {{- include "pocketvlm.stageVolumes" $context | nindent 8 }}
{{- end }}
