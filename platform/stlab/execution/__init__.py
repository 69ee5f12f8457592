"""Running a study: from plan to report. Ray is known to ``stlab.execution.ray`` alone."""
