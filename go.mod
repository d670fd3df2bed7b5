module imgmaint

go 1.26
