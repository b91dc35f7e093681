{{- /*
Lays `over` on `under`, in place. Mappings are merged; the lists below are joined by their key; anything else of `over` wins.
Unlike mergeOverwrite, an empty value of `over` counts: 0 retries are 0 retries. A null takes a key away, as it does in Helm.
*/ -}}
{{- define "pocketvlm.overlay" -}}
{{- $joined := dict "extraEnv" "name" "extraVolumes" "name" "extraVolumeMounts" "mountPath" -}}
{{- range $key, $value := .over -}}
{{- $below := index $.under $key -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $.under $key -}}
{{- else if kindIs "map" $value -}}
{{- if not (kindIs "map" $below) -}}{{- $_ := set $.under $key dict -}}{{- end -}}
{{- include "pocketvlm.overlay" (dict "under" (index $.under $key) "over" $value) -}}
{{- else if and (hasKey $joined $key) $below -}}
{{- $id := index $joined $key -}}
{{- $names := list -}}
{{- range $value -}}{{- $names = append $names (index . $id) -}}{{- end -}}
{{- $kept := list -}}
{{- range $below -}}{{- if not (has (index . $id) $names) -}}{{- $kept = append $kept . -}}{{- end -}}{{- end -}}
{{- $_ := set $.under $key (concat $kept $value) -}}
{{- else -}}
{{- $_ := set $.under $key $value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /*
Settings of a component, as JSON: `defaults` under its own, GPUs and preset worked in. The templates call them $pod. Its
numbers are floats, as all numbers of values files are: without int64 a template writes 1e+06 for a million.
*/ -}}
{{- define "pocketvlm.settings" -}}
{{- $pod := dict -}}
{{- include "pocketvlm.overlay" (dict "under" $pod "over" .root.Values.defaults) -}}
{{- $path := "conductor" -}}
{{- if eq .component "conductor" -}}
{{- include "pocketvlm.overlay" (dict "under" $pod "over" .root.Values.conductor) -}}
{{- else -}}
{{- $path = printf "stages.%s" .component -}}
{{- include "pocketvlm.overlay" (dict "under" $pod "over" (index .root.Values.stages .component)) -}}
{{- end -}}
{{- range list "backoffLimit" "activeDeadlineSeconds" "terminationGracePeriodSeconds" "startupTimeoutSeconds" "unschedulableTimeoutSeconds" "workSize" "tmpSize" -}}
{{- if kindIs "invalid" (index $pod .) -}}
{{- fail (printf "%s.%s and defaults.%s: null takes the value away, and there has to be one" $path . .) -}}
{{- end -}}
{{- end -}}
{{- if $pod.gpus -}}
{{- include "pocketvlm.overlay" (dict "under" $pod "over" (dict "resources" (dict "limits" (dict $pod.gpuResource $pod.gpus)))) -}}
{{- end -}}
{{- with $pod.preset -}}
{{- $preset := index $.root.Values.presets . -}}
{{- if not $preset -}}
{{- fail (printf "%s.preset: there is no %q in presets; there are %s" $path . (keys $.root.Values.presets | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if ($pod.affinity | default dict).nodeAffinity -}}
{{- fail (printf "%s: preset and affinity.nodeAffinity both choose nodes; remove one of them" $path) -}}
{{- end -}}
{{- $terms := list -}}
{{- range $label, $values := $preset.nodes -}}
{{- $terms = append $terms (dict "matchExpressions" (list (dict "key" $label "operator" "In" "values" $values))) -}}
{{- end -}}
{{- $nodes := dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- include "pocketvlm.overlay" (dict "under" $pod "over" (dict "affinity" (dict "nodeAffinity" $nodes))) -}}
{{- $_ := set $pod "tolerations" (concat ($pod.tolerations | default list) ($preset.tolerations | default list)) -}}
{{- end -}}
{{- $spread := list -}}
{{- range $pod.topologySpreadConstraints -}}
{{- $ours := dict "labelSelector" (dict "matchLabels" (include "pocketvlm.selector" $ | fromYaml)) -}}
{{- $spread = append $spread (hasKey . "labelSelector" | ternary . (merge $ours .)) -}}
{{- end -}}
{{- $_ := set $pod "topologySpreadConstraints" $spread -}}
{{- $_ := set $pod "path" $path -}}
{{- toJson $pod -}}
{{- end }}

{{- /* What every pod specification begins with. Takes root, pod, account, token. */ -}}
{{- define "pocketvlm.podSettings" -}}
{{- $pod := .pod -}}
restartPolicy: Never
serviceAccountName: {{ include "pocketvlm.account" . | quote }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int64 $pod.terminationGracePeriodSeconds }}
securityContext:
  {{- include "pocketvlm.podSecurity" .root | nindent 2 }}
{{- with ($pod.image | default dict).pullSecrets | default .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- range $key, $value := dict "nodeSelector" $pod.nodeSelector "tolerations" $pod.tolerations "affinity" $pod.affinity "topologySpreadConstraints" $pod.topologySpreadConstraints "priorityClassName" $pod.priorityClassName "runtimeClassName" $pod.runtimeClassName }}
{{- with $value }}
{{ dict $key . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{- define "pocketvlm.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- with .Values.podSecurity.user }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurity.group }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}

{{- define "pocketvlm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Image and what all our containers share. Takes root, pod, component. */ -}}
{{- define "pocketvlm.container" -}}
image: {{ include "pocketvlm.image" . | quote }}
imagePullPolicy: {{ (.pod.image | default dict).pullPolicy | default .root.Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- include "pocketvlm.containerSecurity" . | nindent 2 }}
{{- end }}

{{- /* `env` of a container: the chart's own as JSON in `own`, then extraEnv. A name twice is an error to Helm 4's server-side apply. */ -}}
{{- define "pocketvlm.env" -}}
{{- $names := list -}}
{{- range fromJsonArray .own -}}{{- $names = append $names .name -}}{{- end -}}
{{- range .pod.extraEnv -}}
{{- if has .name $names -}}
{{- fail (printf "%s.extraEnv or defaults.extraEnv: %s is set twice, or by the chart; remove it" $.pod.path .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- concat (fromJsonArray .own) (.pod.extraEnv | default list) | toYaml -}}
{{- end }}

{{- /* Variables that tell a container where the store is, as JSON. */ -}}
{{- define "pocketvlm.storeEnv" -}}
{{- $values := .Values -}}
{{- $store := include "pocketvlm.store" . | fromJson -}}
{{- $files := "/run/secrets/pocketvlm" -}}
{{- $env := dict "POCKETVLM_STORE" $store.url "AWS_REGION" $values.store.region "HOME" "/tmp" -}}
{{- with $store.endpoint -}}{{- $_ := set $env "AWS_ENDPOINT_URL_S3" . -}}{{- end -}}
{{- if $store.secret -}}
{{- $_ := set $env "AWS_ACCESS_KEY_ID_FILE" (printf "%s/%s" $files $values.store.accessKeyIdKey) -}}
{{- $_ := set $env "AWS_SECRET_ACCESS_KEY_FILE" (printf "%s/%s" $files $values.store.secretAccessKeyKey) -}}
{{- with $values.store.sessionTokenKey -}}{{- $_ := set $env "AWS_SESSION_TOKEN_FILE" (printf "%s/%s" $files .) -}}{{- end -}}
{{- end -}}
{{- if $values.hub.existingSecret -}}{{- $_ := set $env "HF_TOKEN_FILE" (printf "%s/hub-token" $files) -}}{{- end -}}
{{- $list := list -}}
{{- range $name, $value := $env -}}{{- $list = append $list (dict "name" $name "value" $value) -}}{{- end -}}
{{- toJson $list -}}
{{- end }}

{{- /* The volume with the secrets as files, and its mount; nothing where the store is reached by workload identity. */ -}}
{{- define "pocketvlm.secretVolume" -}}
{{- $values := .Values -}}
{{- $store := include "pocketvlm.store" . | fromJson -}}
{{- if or $store.secret $values.hub.existingSecret -}}
- name: secrets
  projected:
    sources:
      {{- with $store.secret }}
      - secret:
          name: {{ . | quote }}
          items:
            {{- range compact (list $values.store.accessKeyIdKey $values.store.secretAccessKeyKey $values.store.sessionTokenKey) }}
            - {key: {{ . | quote }}, path: {{ . | quote }}}
            {{- end }}
      {{- end }}
      {{- with $values.hub.existingSecret }}
      - secret:
          name: {{ . | quote }}
          items:
            - {key: {{ $values.hub.tokenKey | quote }}, path: hub-token}
      {{- end }}
{{- end -}}
{{- end }}

{{- define "pocketvlm.secretMount" -}}
{{- if include "pocketvlm.secretVolume" . -}}
- {name: secrets, mountPath: /run/secrets/pocketvlm, readOnly: true}
{{- end -}}
{{- end }}
