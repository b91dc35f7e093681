{{- /* The stages in the order of the flow. Nothing else in the chart lists them. */ -}}
{{- define "pocketvlm.stages" -}}labeller trainer merger quantiser evaluator{{- end }}

{{- /* What the conductor takes away to release a stage; Kueue honours it, without Kueue it is a mark. */ -}}
{{- define "pocketvlm.gate" -}}pocketvlm.dev/conductor{{- end }}

{{- /* One object store for each namespace, found by this name: another one behind the same Service is a change of values. */ -}}
{{- define "pocketvlm.objectStore" -}}object-store{{- end }}
{{- define "pocketvlm.objectStoreUrl" -}}http://object-store:9000{{- end }}

{{- /*
The release's name with room for the longest suffix: pods of an Indexed Job are <release>-<stage>-<index>-<5 characters>,
and a label holds 63. A long name is cut and keeps 6 digits of its sha256, so that two long names stay two.
*/ -}}
{{- define "pocketvlm.release" -}}
{{- if gt (len .Release.Name) 42 -}}
{{- printf "%s-%s" (.Release.Name | trunc 35 | trimSuffix "-") (sha256sum .Release.Name | trunc 6) -}}
{{- else -}}
{{- .Release.Name -}}
{{- end -}}
{{- end }}

{{- /* Name of what belongs to one component. Takes root and component, as all below do. */ -}}
{{- define "pocketvlm.name" -}}
{{- printf "%s-%s" (include "pocketvlm.release" .root) .component -}}
{{- end }}

{{- define "pocketvlm.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "pocketvlm.labels" -}}
{{ include "pocketvlm.selector" . }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Metadata of an object that has neither annotations nor labels of the user's. */ -}}
{{- define "pocketvlm.metadata" -}}
name: {{ .name | default (include "pocketvlm.name" .) | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "pocketvlm.labels" . | nindent 2 }}
{{- end }}

{{- define "pocketvlm.account" -}}
{{- $account := index .root.Values.serviceAccounts .account -}}
{{- $account.name | default (printf "%s-%s" (include "pocketvlm.release" .root) .account) -}}
{{- end }}

{{- /* <registry>/<repositoryPrefix><component>:<tag>@<digest>; an image of its own brings its registry with it. */ -}}
{{- define "pocketvlm.image" -}}
{{- $all := .root.Values.image -}}
{{- $own := .pod.image | default dict -}}
{{- $name := printf "%s%s" $all.repositoryPrefix .component -}}
{{- if $all.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" $all.registry) $name -}}{{- end -}}
{{- $own.repository | default $name }}:{{ $own.tag | default $all.tag | default .root.Chart.AppVersion | toJson | trimAll "\"" }}
{{- with $own.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* Url, endpoint and secret of the store, as JSON. */ -}}
{{- define "pocketvlm.store" -}}
{{- $store := .Values.store -}}
{{- $here := include "pocketvlm.objectStoreUrl" . -}}
{{- $endpoint := $store.endpoint | default (ternary $here "" (or (not $store.url) .Values.objectStore.enabled)) -}}
{{- $secret := $store.existingSecret | default (ternary (include "pocketvlm.objectStore" .) "" (hasPrefix $here $endpoint)) -}}
{{- dict "url" ($store.url | default "s3://pocketvlm") "endpoint" $endpoint "secret" $secret | toJson -}}
{{- end }}

{{- /* Whether an object of the Prometheus operator is rendered: "yes" or nothing. Takes root, values and key. */ -}}
{{- define "pocketvlm.monitored" -}}
{{- $there := .root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1" -}}
{{- if .values.enabled -}}
{{- if and (not $there) (eq .values.renderMode "failIfMissing") -}}
{{- fail (printf "metrics.%s: the cluster has no monitoring.coreos.com/v1; install the Prometheus operator, or set metrics.%s.renderMode to skipIfMissing" .key .key) -}}
{{- end -}}
{{- if or $there (eq .values.renderMode "alwaysRender") -}}yes{{- end -}}
{{- end -}}
{{- end }}
