"""One file per term of the objective; `table` names them all, without torch."""
