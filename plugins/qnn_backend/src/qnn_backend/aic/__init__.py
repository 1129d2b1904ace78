"""Target ``aic``: Cloud AI 100 through the QAIRT tools."""
