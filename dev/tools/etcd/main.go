// Command etcd is etcd's server: its own main package is in a module that requires none of its releases.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
