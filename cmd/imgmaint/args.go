package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// optionalValue are the flags that may stand without a value, and the value
// they then have.
var optionalValue = map[string]string{"compress": "zlib", "c": "zlib"}

// arrange puts the flags of a command before its operands, as GNU getopt
// does: cli itself takes every word after the first operand for an operand. A
// lone "-" is an operand, and "--" ends the flags. It refuses a command that
// does not exist, for which cli would print the help and exit with 1.
func arrange(app *cli.App, args []string) ([]string, error) {
	i := 1
	for i < len(args) && strings.HasPrefix(args[i], "-") {
		i++ // flags of the program itself take no values
	}
	if i >= len(args) {
		return args, nil
	}
	name := args[i]
	if name == "help" || name == "h" {
		return args, nil
	}
	cmd := app.Command(name)
	if cmd == nil {
		return nil, usagef("%q is not a command", name)
	}
	takesValue := map[string]bool{}
	for _, f := range cmd.Flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, n := range f.Names() {
			takesValue[n] = !isBool
		}
	}
	head, rest := args[:i+1:i+1], args[i+1:]
	var flags, operands []string
	for len(rest) > 0 {
		arg := rest[0]
		rest = rest[1:]
		if arg == "--" {
			operands = append(operands, rest...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			operands = append(operands, arg)
			continue
		}
		flag := strings.TrimLeft(arg, "-")
		if v, ok := optionalValue[flag]; ok && takesValue[flag] {
			arg = arg + "=" + v
		} else if !strings.Contains(flag, "=") && takesValue[flag] {
			if len(rest) == 0 {
				return nil, usagef("flag %s needs a value", arg)
			}
			flags = append(flags, arg+"="+rest[0])
			rest = rest[1:]
			continue
		}
		flags = append(flags, arg)
	}
	head = append(head, flags...)
	return append(append(head, "--"), operands...), nil
}

// operands returns the operands of a command, which must be between least and
// most (-1: any number).
func operands(c *cli.Context, least, most int) ([]string, error) {
	args := c.Args().Slice()
	if len(args) < least || most >= 0 && len(args) > most {
		return nil, usagef("%s needs %s", c.Command.Name, c.Command.ArgsUsage)
	}
	return args, nil
}
