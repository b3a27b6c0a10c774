"""The `fairlead` command: one parser, each subcommand in a module of its own.

Knows names and options; a subcommand's module is imported only when it is asked for, so that `fairlead policy check`
does not pay for an HTTP server nor the gateway for a simulator.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "up": ("services.up", "start the four services and print how to reach them"),
    "restart": ("services.restart", "start running services again, one after the other, without a failed request"),
    "serve": ("services.serve", "run one service in the foreground (containers use this)"),
    "setup": ("services.setup", "make what the services need before they start, and say how to reach them"),
    "doctor": ("services.doctor", "say what is installed, what the engine would run on, and what is in the way"),
    "health": ("services.health", "exit 0 when a service is ready"),
    "replay": ("services.replay", "run the cores in virtual time over a trace, or verify a recorded log"),
    "experiment": ("services.experiment", "reproduce a paper: published figures beside obtained ones"),
    "keys": ("services.keys", "add, list or revoke API keys"),
    "usage": ("services.usage", "say what each tenant has used, by day"),
    "fairness": ("services.fairness", "say how service is divided now, and how near to the bound that is"),
    "explain": ("services.explain", "say where a request's time went, token by token"),
    "top": ("services.top", "show in the terminal what goes on, each second"),
    "bench": ("ops.bench.harness", "measure against a reference in the same run"),
}
POLICY_COMMANDS = {
    "check": ("services.policy_check", "say what is wrong with a policy file, or what it will do"),
    "explain": ("services.policy_explain", "say what a policy does: the one in force, an earlier one or a file"),
    "diff": ("services.policy_diff", "say what changes from one policy to another"),
    "plan": ("services.policy_plan", "say what a policy changes and what the recorded traffic would have seen of it"),
    "apply": ("services.policy_apply", "put a policy into force and wait until it is"),
    "rollback": ("services.policy_rollback", "put an earlier policy into force again"),
    "cost-table": ("services.policy_cost_table", "write a measured cost profile as the table of a policy"),
    "history": ("services.policy_history", "list the revisions there have been"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, import the one module needed, run it; returns the process's exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="fairlead", description="Serves large language models to many tenants, fairly and on time."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        _add(commands, name, module, text, wanted=argv[:1] == [name])
    policy = commands.add_parser("policy", help="work with policy files", description="Work with policy files.")
    actions = policy.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, text) in POLICY_COMMANDS.items():
        _add(actions, name, module, text, wanted=argv[:2] == ["policy", name])
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except BrokenPipeError:
        # The reader of our output left (`fairlead ... | head`): not an error worth a traceback.
        sys.stderr.close()
        return 0
    return status


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, module: str, text: str, *, wanted: bool
) -> None:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    if wanted:
        implementation = importlib.import_module(module)
        implementation.add_arguments(parser)
        parser.set_defaults(run=implementation.run)


if __name__ == "__main__":
    sys.exit(main())
