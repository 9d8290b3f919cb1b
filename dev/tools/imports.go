//go:build tools

// Package tools names the packages whose test binaries are built from this module's requirements.
package tools

import (
	_ "k8s.io/kubernetes/test/e2e_node"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
