// SPDX-License-Identifier: Apache-2.0

// One binary that is every Kubernetes program of the test cluster, chosen by the name it is called by.
//
// Kubernetes cannot be installed with "go install" (its module has replace directives), and one
// binary compiles and links in a fifth of the time of seven. Rules for editing:
//   - only the chosen constructor may be called: two of them install the process's signal handler,
//     and the second to do so panics;
//   - the blank imports are those of the real mains (metrics of the client, JSON logs);
//   - the version is set by the linker, see gobuild.py: clients refuse a server without one.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	constructors := map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": manager.NewControllerManagerCommand,
		"kube-proxy":              proxy.NewProxyCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubectl":                 kubectl.NewDefaultKubectlCommand,
		"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	}
	name := filepath.Base(os.Args[0])
	construct, known := constructors[name]
	if !known && len(os.Args) > 1 {
		name, os.Args = os.Args[1], os.Args[1:]
		construct, known = constructors[name]
	}
	if !known {
		fmt.Fprintf(os.Stderr, "%s: not a program of the cluster\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(construct()))
}
