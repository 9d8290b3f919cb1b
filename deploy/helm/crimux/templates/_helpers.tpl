{{/* The image with tag or digest; fails while nobody has named one. */}}
{{- define "crimux.image" -}}
{{- $repository := required "image.repository is empty: name an image that you pushed (docs/install.md)" .Values.image.repository -}}
{{- if and (regexMatch "^[^/]*\\.example(/|$)" $repository) (not .Values.allowPlaceholder) -}}
{{- fail (printf "image.repository is the placeholder %s: name an image that you pushed, --set image.repository=REGISTRY/crimux-node (docs/install.md)" $repository) -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The name of a pool's objects: crimux-node, or crimux-node-POOL. */}}
{{- define "crimux.name" -}}
{{- if .pool -}}crimux-node-pool-{{ .pool }}{{- else -}}crimux-node{{- end -}}
{{- end -}}

{{/* The configuration of a pool. */}}
{{- define "crimux.config" -}}
{{- if .pool -}}
{{- required (printf "pools.%s.config is empty" .pool) (get .root.Values.pools .pool).config -}}
{{- else -}}
{{- default (.root.Files.Get "files/base/config.yaml") .root.Values.config -}}
{{- end -}}
{{- end -}}

{{/* admin.http of a pool's configuration: IP:PORT, or off, which YAML reads as false. */}}
{{- define "crimux.http" -}}
{{- $config := include "crimux.config" . | fromYaml -}}
{{- with $config.Error -}}
{{- fail (printf "%s is no YAML: %s" (include "crimux.configValue" $) .) -}}
{{- end -}}
{{- $admin := default dict $config.admin -}}
{{- if kindIs "bool" $admin.http -}}off{{- else -}}{{- default "127.0.0.1:19440" $admin.http -}}{{- end -}}
{{- end -}}

{{/* The name of the value that holds a pool's configuration. */}}
{{- define "crimux.configValue" -}}
{{- if .pool -}}pools.{{ .pool }}.config{{- else -}}config{{- end -}}
{{- end -}}

{{/* A ConfigMap's name follows its contents, so that a change rolls over the nodes and pods that wait keep what they have. */}}
{{- define "crimux.configMap" -}}
{{- $contents := printf "%s%s" (include "crimux.config" .) (.root.Files.Get "files/base/crimux-node.sh") -}}
{{- printf "%s-%s" (include "crimux.name" .) (sha256sum $contents | trunc 10) -}}
{{- end -}}

{{/* A DaemonSet of the kustomize base with what the values say. Wants root, file, pool, selector. */}}
{{- define "crimux.daemonSet" -}}
{{- $set := .root.Files.Get (printf "files/base/%s" .file) | fromYaml -}}
{{- $_ := set $set.metadata "namespace" .root.Release.Namespace -}}
{{- $pod := $set.spec.template.spec -}}
{{- $container := index $pod.containers 0 -}}
{{- $_ := set $container "image" (include "crimux.image" .root) -}}
{{- $_ := set $container "imagePullPolicy" .root.Values.image.pullPolicy -}}
{{- $_ := set $container "resources" .root.Values.resources -}}
{{- $_ := set $container "env" (list (dict "name" "CRIMUX_KUBELET" "value" .root.Values.kubelet)) -}}
{{- $_ := set $pod "tolerations" .root.Values.tolerations -}}
{{- $_ := set $pod "nodeSelector" (merge (dict "kubernetes.io/os" "linux") .selector) -}}
{{- if $container.ports -}}
{{- $http := include "crimux.http" . -}}
{{- if eq $http "off" -}}
{{- $_ := unset $container "ports" -}}
{{- else -}}
{{- $port := regexFind "[0-9]+$" $http | int -}}
{{- $_ := set $container "ports" (list (dict "name" "metrics" "containerPort" $port "hostPort" $port)) -}}
{{- end -}}
{{- end -}}
{{- with .root.Values.image.pullSecrets }}{{- $_ := set $pod "imagePullSecrets" . -}}{{- end -}}
{{- range $pod.volumes -}}
{{- if .configMap }}{{- $_ := set .configMap "name" (include "crimux.configMap" $) -}}{{- end -}}
{{- end -}}
{{- if .pool -}}
{{- $name := include "crimux.name" . -}}
{{- $_ := set $set.metadata "name" $name -}}
{{- /* A label of its own: no DaemonSet may select the pods of another. */ -}}
{{- $_ := set $set.spec.selector.matchLabels "app.kubernetes.io/name" $name -}}
{{- $_ := set $set.spec.template.metadata.labels "app.kubernetes.io/name" $name -}}
{{- else if and .root.Values.pools (eq .file "daemonset.yaml") -}}
{{- $none := dict "key" "crimux.io/pool" "operator" "NotIn" "values" (keys .root.Values.pools | sortAlpha) -}}
{{- $terms := list (dict "matchExpressions" (list $none)) -}}
{{- $required := dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $pod "affinity" (dict "nodeAffinity" $required) -}}
{{- end -}}
{{- toYaml $set -}}
{{- end -}}
