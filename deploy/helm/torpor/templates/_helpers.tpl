{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "torpor.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Names of cluster-wide objects hold the namespace, so that two releases do not meet. */}}
{{- define "torpor.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "torpor.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "torpor.selector" -}}
app.kubernetes.io/name: {{ include "torpor.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "torpor.labels" -}}
{{ include "torpor.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "torpor.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "torpor.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* hostPath, existingClaim or nfs; exactly one. */}}
{{- define "torpor.storeKind" -}}
{{- $kinds := list -}}
{{- if .Values.store.hostPath -}}{{- $kinds = append $kinds "hostPath" -}}{{- end -}}
{{- if .Values.store.existingClaim -}}{{- $kinds = append $kinds "existingClaim" -}}{{- end -}}
{{- if or .Values.store.nfs.server .Values.store.nfs.path -}}
{{- $kinds = append $kinds "nfs" -}}
{{- end -}}
{{- if ne (len $kinds) 1 -}}
{{- fail "set exactly one of store.hostPath, store.existingClaim, store.nfs: checkpoints have to be kept somewhere" -}}
{{- end -}}
{{- if and (eq (first $kinds) "nfs") (not (and .Values.store.nfs.server .Values.store.nfs.path)) -}}
{{- fail "store.nfs needs both server and path" -}}
{{- end -}}
{{- first $kinds -}}
{{- end -}}

{{- define "torpor.storeMount" -}}
/var/lib/torpor/stores/{{ .Values.store.name }}
{{- end -}}

{{- define "torpor.stores" -}}
{{- dict .Values.store.name (include "torpor.storeMount" .) | toJson -}}
{{- end -}}
