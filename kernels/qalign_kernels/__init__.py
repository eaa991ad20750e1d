"""What each fast kernel must compute, in plain torch: the contract its fast form is tested against."""
