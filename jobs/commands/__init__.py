"""The verbs, one module each; `jobs.cli` imports a verb's module when it is called."""
