// Consul as its own main package builds it, from the module proxy.
package main

import (
	"os"

	mcli "github.com/mitchellh/cli"

	"github.com/hashicorp/consul/command"
	"github.com/hashicorp/consul/command/cli"
	_ "github.com/hashicorp/consul/service_os"
)

func main() {
	ui := &cli.BasicUI{BasicUi: mcli.BasicUi{Writer: os.Stdout, ErrorWriter: os.Stderr}}
	cmds := command.RegisteredCommands(ui)
	c := &mcli.CLI{Name: "consul", Args: os.Args[1:], Commands: cmds}
	code, err := c.Run()
	if err != nil {
		panic(err)
	}
	os.Exit(code)
}
