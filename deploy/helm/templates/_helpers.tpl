{{- define "lb-agent.labels" -}}
app.kubernetes.io/name: lb-agent
app.kubernetes.io/part-of: lb
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lb-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
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
