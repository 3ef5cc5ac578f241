"""Studies that ship with the project: recipe, decision rule, factorial designs."""
