{{- define "lb-agent.labels" -}}
app.kubernetes.io/name: lb-agent
app.kubernetes.io/part-of: lb
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* By its digest, that of the release's image unless there is another or a tag: it is no value, which --reuse-values would keep. */}}
{{- define "lb-agent.image" -}}
{{- $digest := .Values.image.digest -}}
{{- if not (or $digest .Values.image.tag) -}}
{{- $digest = index .Chart.Annotations "lb-agent.io/digest" -}}
{{- end -}}
{{- if $digest -}}
{{ .Values.image.repository }}@{{ $digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The settings as the data of the ConfigMap. */}}
{{- define "lb-agent.settings" -}}
{{- range $key, $value := .Values.settings }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* The port of a setting that is an address with a port, or its default: (list . "probe-bind-address" 10266). */}}
{{- define "lb-agent.port" -}}
{{- $address := index (index . 0).Values.settings (index . 1) -}}
{{- if $address }}{{ splitList ":" $address | last }}{{ else }}{{ index . 2 }}{{ end }}
{{- end }}

{{/* An object of a file, in the release's namespace and with more labels: (list $ "monitoring/podmonitor.yaml" labels). */}}
{{- define "lb-agent.linked" -}}
{{- $root := index . 0 -}}
{{- $object := $root.Files.Get (index . 1) | fromYaml -}}
{{- $_ := set $object.metadata "namespace" $root.Release.Namespace -}}
{{- $labels := include "lb-agent.labels" $root | fromYaml -}}
{{- $_ := set $object.metadata "labels" (mergeOverwrite $object.metadata.labels $labels (index . 2)) -}}
{{- toYaml $object -}}
{{- end }}
