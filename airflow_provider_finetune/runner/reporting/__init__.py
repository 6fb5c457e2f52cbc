"""From the metrics files of the backends to progress lines, last and best values, and the loss chart."""
